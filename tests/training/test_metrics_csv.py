"""metrics.csv survives resuming, new columns and a crash in the middle of a line."""

from __future__ import annotations

from editkit.training.metrics_csv import CsvLog


def test_rows_are_appended_and_new_columns_widen_the_file(tmp_path):
    log = CsvLog(str(tmp_path))
    log.log_metrics({"a": 1.0}, step=1)
    log.log_metrics({"a": 2.0, "b": 0.1 + 0.2}, step=2)
    log.log_metrics({"b": 3.0}, step=3)
    assert log.path.read_text().split() == ["step,a,b", "1,1,", "2,2,0.3", "3,,3"]


def test_a_resumed_run_rewrites_what_came_after_its_checkpoint(tmp_path):
    log = CsvLog(str(tmp_path))
    for step in range(1, 5):
        log.log_metrics({"a": float(step)}, step=step)
    with log.path.open("a") as file:
        file.write("5,")  # the process died here
    resumed = CsvLog(str(tmp_path))
    resumed.rewind(2)
    resumed.log_metrics({"a": 30.0}, step=3)
    assert resumed.path.read_text().split() == ["step,a", "1,1", "2,2", "3,30"]


def test_rewinding_an_empty_folder_writes_nothing(tmp_path):
    CsvLog(str(tmp_path)).rewind(3)
    assert list(tmp_path.iterdir()) == []
