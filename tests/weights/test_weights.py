"""editkit weights against a server of one's own: whole, resumed, checked, and never more than asked."""

from __future__ import annotations

import hashlib
import json
import random
import urllib.request

import pytest

from editkit.app import weights
from editkit.backbones import assets, registry
from editkit.backbones.pixel import load_pixel
from editkit.cli import run
from editkit.errors import UsageError, UserError
from tests.weights.server import Site, serving

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
OTHER = random.Random(1).randbytes(300_000)


@pytest.fixture
def site():
    with serving(Site({"/one/net.pt": DATA, "/two/net.pt": DATA, "/one/bad.pt": OTHER})) as site:
        yield site


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(weights.OFFLINE_VARIABLE, raising=False)


def entry(sources, *, name="net.pt", page="https://example.org/net", layout="ddpm", **about):
    return {
        "summary": "a network",
        "licence": "MIT",
        "for": ["asyrp"],
        "layout": layout,
        "page": page,
        "files": {name: {"sources": sources} | about},
    }


def registry_of(tmp_path, **found):
    path = tmp_path / "registry.yaml"
    path.write_text(json.dumps(found))  # which is YAML as well
    registry.entries.cache_clear()
    return path


class Fetched:
    """One call of `fetch`: its exit code, its lines, and the files that there are now."""

    def __init__(self, tmp_path, file, names=("net",), **how):
        self.lines: list[str] = []
        self.home = tmp_path / "weights"
        self.code = weights.fetch(names, self.home, self.lines.append, registry=file, **how)
        self.text = "\n".join(self.lines)

    @property
    def files(self):
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file())


def test_a_file_is_fetched_and_checked_and_the_next_step_named(tmp_path, site):
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA, bytes=len(DATA)))
    done = Fetched(tmp_path, file)
    assert (done.code, done.files) == (0, ["net/net.pt"])
    assert (done.home / "net/net.pt").read_bytes() == DATA
    assert done.lines == [f"next: editkit convert {done.home / 'net/net.pt'} --licence 'MIT'"]
    assert Fetched(tmp_path, file).code == 0 and len(site.asked) == 1, "what is here is not fetched again"


def test_an_interrupted_download_goes_on_where_it_broke_off(tmp_path, site):
    site.breaks["/one/net.pt"] = [100_000, 0]
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA))
    first = Fetched(tmp_path, file)
    assert first.code == 1 and "broke off at 100,000 of 300,000 bytes; the same command continues" in first.text
    assert [name for name in first.files if not name.endswith(".part")] == []
    second = Fetched(tmp_path, file)
    assert (second.code, second.files) == (0, ["net/net.pt"])
    assert site.asked[-1] == ("/one/net.pt", "bytes=100000-")
    assert (second.home / "net/net.pt").read_bytes() == DATA


def test_one_command_asks_again_as_long_as_that_brings_more(tmp_path, site):
    site.breaks["/one/net.pt"] = [100_000, 100_000]
    done = Fetched(tmp_path, registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA)))
    assert done.code == 0 and [wanted for _, wanted in site.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_cannot_send_the_rest_sends_all(tmp_path, site):
    site.breaks["/one/net.pt"], site.ranges = [100_000], False
    done = Fetched(tmp_path, registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA)))
    assert done.code == 0 and (done.home / "net/net.pt").read_bytes() == DATA


def test_a_file_that_became_shorter_is_started_anew(tmp_path, site):
    site.files["/one/net.pt"] = OTHER * 2
    site.breaks["/one/net.pt"] = [500_000, 0]
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA))
    assert Fetched(tmp_path, file).code == 1
    site.files["/one/net.pt"] = DATA
    done = Fetched(tmp_path, file)
    assert done.code == 0 and (done.home / "net/net.pt").read_bytes() == DATA


def test_a_wrong_hash_is_thrown_away_and_the_next_source_tried(tmp_path, site):
    sources = [f"{site.address}/one/bad.pt", f"{site.address}/two/net.pt"]
    done = Fetched(tmp_path, registry_of(tmp_path, net=entry(sources, sha256=SHA)))
    assert (done.code, done.files) == (0, ["net/net.pt"])
    assert (done.home / "net/net.pt").read_bytes() == DATA
    assert [path for path, _ in site.asked] == ["/one/bad.pt", "/two/net.pt"]


def test_sources_are_tried_in_their_order(tmp_path, site):
    sources = [f"{site.address}/none.pt", f"{site.address}/one/net.pt", f"{site.address}/two/net.pt"]
    assert Fetched(tmp_path, registry_of(tmp_path, net=entry(sources, sha256=SHA))).code == 0
    assert [path for path, _ in site.asked] == ["/none.pt", "/one/net.pt"]


def test_when_all_sources_fail_one_line_says_why_and_what_to_do(tmp_path, site):
    closed = "http://127.0.0.1:9/net.pt"
    sources = [f"{site.address}/none.pt", f"{site.address}/one/bad.pt", closed]
    done = Fetched(tmp_path, registry_of(tmp_path, net=entry(sources, sha256=SHA)))
    assert (done.code, done.files, len(done.lines)) == (1, [], 1)
    for part in ("answered 404", "delivered another file, sha256", "refused", "https://example.org/net", "--offline DIR"):
        assert part in done.lines[0]


def test_without_a_hash_the_file_is_said_to_be_unpinned(tmp_path, site):
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"]))
    done = Fetched(tmp_path, file)
    assert done.code == 0 and f"unpinned: nobody published its hash; it is sha256 {SHA}" in done.text
    lines: list[str] = []
    assert weights.verify(["net"], done.home, lines.append, registry=file) == 0
    assert lines == [f"unpinned  {done.home / 'net/net.pt'}  sha256 {SHA}"]


@pytest.mark.parametrize("pin", [{"sha256": SHA[:8]}, {"md5": hashlib.md5(DATA).hexdigest()}], ids=["8 digits", "md5"])
def test_weaker_pins_are_held_too(tmp_path, site, pin):
    good = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], **pin))
    assert Fetched(tmp_path, good).lines[-1].startswith("next:")
    bad = registry_of(tmp_path, bad=entry([f"{site.address}/one/bad.pt"], **pin))
    assert Fetched(tmp_path, bad, ["bad"]).code == 1


def test_files_fetched_by_hand_are_taken_from_a_folder_and_checked(tmp_path, site, monkeypatch):
    offline = tmp_path / "stick"
    offline.mkdir()
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA))
    missing = Fetched(tmp_path, file, offline=offline)
    assert missing.code == 1 and f"net.pt is not in {offline} (--offline)" in missing.lines[0] and len(missing.lines) == 1
    (offline / "net.pt").write_bytes(OTHER)
    wrong = Fetched(tmp_path, file, offline=offline)
    assert wrong.code == 1 and "is not net.pt" in wrong.text and wrong.files == []
    (offline / "net.pt").write_bytes(DATA)
    monkeypatch.setenv(weights.OFFLINE_VARIABLE, str(offline))
    right = Fetched(tmp_path, file)
    assert (right.code, right.files) == (0, ["net/net.pt"])
    assert (offline / "net.pt").read_bytes() == DATA and site.asked == [], "nothing is asked of the network"


def test_what_has_no_address_is_fetched_by_hand(tmp_path):
    done = Fetched(tmp_path, registry_of(tmp_path, net=entry([])))
    assert done.code == 1 and "can only be fetched by hand: download it from https://example.org/net" in done.lines[0]
    assert done.lines[0].endswith("editkit weights fetch net/net.pt --offline DIR")


def test_a_pattern_takes_some_files_and_one_failure_leaves_the_others(tmp_path, site):
    about = entry([], sha256=SHA)
    about["files"] = {
        "net.pt": {"sources": [f"{site.address}/one/net.pt"], "sha256": SHA},
        "bad.pt": {"sources": [f"{site.address}/one/bad.pt"], "sha256": SHA},
    }
    file = registry_of(tmp_path, net=about)
    assert Fetched(tmp_path, file, ["net/n*"]).files == ["net/net.pt"]
    both = Fetched(tmp_path, file)
    assert (both.code, both.files) == (1, ["net/net.pt"])
    with pytest.raises(UsageError, match="Did you mean 'net.pt'"):
        Fetched(tmp_path, file, ["net/nett.pt"])
    with pytest.raises(UsageError, match=r"Did you mean 'net'.*Known are net"):
        Fetched(tmp_path, file, ["nett"])
    with pytest.raises(UsageError, match="needs a NAME"):
        Fetched(tmp_path, file, [])


def test_verify_tells_whole_broken_and_missing_files_apart(tmp_path):
    home = tmp_path / "weights"
    (home / "net").mkdir(parents=True)
    about = entry([])
    about["files"] = {"net.pt": {"sha256": SHA}, "bad.pt": {"sha256": SHA}, "short.pt": {"bytes": 5}, "none.pt": {}}
    file = registry_of(tmp_path, net=about, empty=entry([]))
    for name, data in {"net.pt": DATA, "bad.pt": OTHER, "short.pt": b"1234"}.items():
        (home / "net" / name).write_bytes(data)
    lines: list[str] = []
    assert weights.verify([], home, lines.append, registry=file) == 1
    assert [line.split()[0] for line in lines] == ["ok", "WRONG", "WRONG"]
    assert "4 bytes instead of 5" in lines[2]
    lines.clear()
    assert weights.verify(["net/net.pt"], home, lines.append, registry=file) == 0
    assert weights.verify(["net/none.pt"], home, lines.append, registry=file) == 1
    assert "missing" in lines[-1] and "editkit weights fetch net/none.pt" in lines[-1]
    lines.clear()
    assert weights.verify([], tmp_path / "nowhere", lines.append, registry=file) == 0
    assert lines == [f"no known weights in {tmp_path / 'nowhere'}"]


def test_a_broken_file_that_is_here_is_named_not_replaced(tmp_path, site):
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA))
    (tmp_path / "weights" / "net").mkdir(parents=True)
    (tmp_path / "weights" / "net" / "net.pt").write_bytes(OTHER)
    done = Fetched(tmp_path, file)
    assert done.code == 1 and "remove it and fetch again" in done.text and site.asked == []


def test_a_folder_of_the_hub_is_left_to_its_own_client(tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot(name, *, revision, local_dir, allow_patterns):
        assert (name, revision) == ("some/model", "abc") and "*.bin" not in allow_patterns
        local_dir.mkdir(parents=True)
        (local_dir / "model.safetensors").write_bytes(DATA)

    about = entry([]) | {"hub": "some/model", "revision": "abc"}
    del about["files"], about["layout"]
    file = registry_of(tmp_path, **{"some/model": about})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    done = Fetched(tmp_path, file, ["some/model"])
    assert done.code == 0 and done.lines == [f"{done.home}/some/model is ready: backbone.path={done.home}/some/model"]
    lines: list[str] = []
    assert weights.verify(["some/model"], done.home, lines.append, registry=file) == 0
    assert lines[0].startswith("unpinned")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no network\nat all"))
    )
    failed = Fetched(tmp_path, file, ["some/model"])
    assert failed.code == 1 and "could not be fetched: no network" in failed.text and len(failed.lines) == 1


def test_the_list_shows_what_is_here(tmp_path, capsys, monkeypatch):
    home = tmp_path / "weights"
    (home / "lpips-alex-v0.1").mkdir(parents=True)
    (home / "lpips-alex-v0.1" / "alex.pth").write_bytes(b"")
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(home))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("listing asks nothing of the network"))
    assert run(["weights", "list"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("lpips-alex"))
    assert "1 of 2" in row and "BSD" in row
    row = next(line for line in out.splitlines() if line.startswith("asyrp-deltas"))
    assert "110.6 MB" in row and " no " in row and "asyrp" in row


def test_the_command_line(tmp_path, capsys, site, monkeypatch):
    file = registry_of(tmp_path, net=entry([f"{site.address}/one/net.pt"], sha256=SHA))
    for name in ("fetch", "verify"):
        own = getattr(weights, name)
        monkeypatch.setattr(weights, name, lambda *a, own=own, **k: own(*a, registry=file, **k))
    folder = ["--folder", str(tmp_path / "w")]
    assert run(["weights", "fetch", "net", *folder]) == 0
    assert "next: editkit convert" in capsys.readouterr().err
    assert run(["weights", "verify", "net", *folder]) == 0
    assert capsys.readouterr().out.startswith("ok")
    assert run(["weights", "fetch", "nett", *folder]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name, one in registry.entries().items() if one.layout])
def test_what_is_converted_lies_beside_what_was_fetched(name, tmp_path):
    entry = registry.entries()[name]
    command = entry.conversion(entry.files[0], tmp_path)
    assert f"-o {tmp_path / name} " not in command, "a folder that is there is not written into"
    assert entry.into is None or f" -o {tmp_path / entry.into} " in command


def test_missing_weights_name_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="run `editkit weights fetch google/ddpm-ema-church-256`"):
        load_pixel("google/ddpm-ema-church-256")
    with pytest.raises(UserError, match="run `editkit weights fetch openai-clip-vit-b16`"):
        assets.resolve("openai/clip-vit-base-patch16")


def test_what_was_fetched_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "google" / "ddpm-ema-church-256").mkdir(parents=True)
    assert assets.resolve("google/ddpm-ema-church-256").resolve() == tmp_path / "weights" / "google" / "ddpm-ema-church-256"
