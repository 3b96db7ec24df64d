"""editkit submit: train, edit"""

from __future__ import annotations

import typer

from editkit.app.submit_options import SubmitEdit, SubmitTrain
from editkit.cli.signature import takes

app = typer.Typer(help="Train, or edit a folder, as a SLURM job.", no_args_is_help=True)


def _train_file(options: SubmitTrain) -> str:
    from editkit.app.submit import train_job

    return train_job(options).text


def _edit_file(options: SubmitEdit) -> str:
    from editkit.app.submit import edit_job

    return edit_job(options).text


@app.command("train")
@takes(SubmitTrain, _train_file)
def train(options: SubmitTrain) -> int:
    """Train as a SLURM job that is queued again until it is done; --sweep makes a job array.

    editkit submit train recipe=asyrp cluster=a100x8 --prompt 'a smiling face'

    editkit submit train recipe=asyrp --prompt 'a smiling face' --sweep method.l1_weight=1,2 seed=1,2"""
    from editkit.app.submit import submit, train_job

    return submit(train_job(options))


@app.command("edit")
@takes(SubmitEdit, _edit_file)
def edit(options: SubmitEdit) -> int:
    """Edit a folder as a SLURM job array; the same command again edits what is not done yet.

    editkit submit edit --method asyrp --image photos -o smiling --shards 8"""
    from editkit.app.submit import edit_job, submit

    return submit(edit_job(options))
