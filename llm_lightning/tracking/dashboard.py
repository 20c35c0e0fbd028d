"""Create the project's W&B workspace: `python -m llm_lightning.tracking.dashboard` creates it, or prints it if no key is configured.

Charts show the mean and range over the seeds of one configuration: such runs have the same hash `configuration`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from llm_lightning.config.schema import LoggerConfig
from llm_lightning.errors import RunError, UserError
from llm_lightning.reporting.table import SCORES, WRITTEN
from llm_lightning.tracking.wandb_mode import read_mode

NAME = "llm_lightning"
SPLITS = ("validation", "test")


def workspace(entity: str, project: str) -> Any:
    """Build the workspace: sections for loss, quality, speed, energy, samples and sweeps. Raises UserError if the extra is missing."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'llm_lightning[dashboard]'.") from error

    def line(title: str, *metrics: str, x: str = "step", **options: Any) -> Any:
        return wr.LinePlot(title=title, x=x, y=list(metrics), **options)

    def seeds(title: str, metric: str) -> Any:
        by = wr.Config("configuration")
        return line(title, metric, groupby=by, groupby_aggfunc="mean", groupby_rangefunc="minmax")

    def table(key: str) -> Any:
        return wr.WeavePanelSummaryTable(table_name=key)

    def chart(kind: str, key: str, fields: dict[str, str], title: str) -> Any:
        return wr.CustomChart(
            query={"summaryTable": {"tableKey": f"{key}_table"}},
            chart_name=kind,
            chart_fields=fields,
            chart_strings={"title": title},
        )

    def same(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    def scatter(x: str, y: str) -> Any:
        return wr.ScatterPlot(title=f"{y} over {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))

    loss = [
        line("Training loss", "train/loss", smoothing_factor=0.5, smoothing_type="exponentialTimeWeighted"),
        line("Validation loss", "validation/loss"),
        line("Training loss over tokens", "train/loss", x="tokens_seen"),
        line("Validation loss over tokens", "validation/loss", x="tokens_seen"),
        line("Learning rate", "train/learning_rate"),
        line("Gradient norm", "train/gradient_norm", log_y=True),
        line("Weight norm", "train/weight_norm"),
    ]
    quality: list[Any] = [seeds(title, f"validation/{name}") for name, title in (SCORES | WRITTEN).items()]
    quality += [line("Perplexity", "validation/perplexity"), line("Bits per byte", "validation/bits_per_byte")]
    for split in SPLITS:
        quality += [
            chart(
                "wandb/confusion_matrix/v1",
                f"{split}/confusion_matrix",
                same("Actual", "Predicted", "nPredictions"),
                f"Confusion · {split}",
            ),
            chart(
                "wandb/area-under-curve/v0",
                f"{split}/precision_recall",
                {"x": "recall", "y": "precision", "class": "class"},
                f"Precision and recall · {split}",
            ),
            chart("wandb/lineseries/v0", f"{split}/calibration", same("step", "lineKey", "lineVal"), f"Calibration · {split}"),
        ]
    speed = [
        line("Tokens per second", "train/tokens_per_second"),
        line("MFU", "train/mfu"),
        line("Padding", "train/padding_fraction"),
        line("Waiting for data", "train/data_wait_fraction"),
        wr.BarPlot(title="Peak memory, GiB", metrics=["throughput/peak_memory_gib"]),
    ]
    energy = [
        line("kWh", "energy/kwh"),
        line("CO₂, kg", "energy/co2eq_kg"),
        wr.BarPlot(title="Joules per token", metrics=["energy/joules_per_token"]),
        wr.BarPlot(title="kWh by hardware", metrics=[f"energy/{part}_kwh" for part in ("cpu", "gpu", "memory")]),
    ]
    samples = [
        wr.MediaBrowser(title="Written last", media_keys=["samples/last"]),
        table("samples/all"),
        *(table(f"{split}/mistakes") for split in SPLITS),
    ]
    sweeps = [
        wr.ParallelCoordinatesPlot(
            columns=[
                wr.ParallelCoordinatesPlotColumn(metric=wr.Config("optimizer.lr"), log=True),
                wr.ParallelCoordinatesPlotColumn(metric=wr.Config("batch.sequences")),
                wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("seconds/total")),
                wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("test/accuracy")),
                wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("test/loss")),
            ]
        ),
        wr.ParameterImportancePlot(with_respect_to="validation/loss"),
        *(scatter(x, "test/loss") for x in ("seconds/total", "model/parameters", "energy/kwh")),
        wr.RunComparer(diff_only="split"),
    ]
    sections = {"Loss": loss, "Quality": quality, "Speed": speed, "Energy": energy, "Samples": samples, "Sweeps": sweeps}
    return ws.Workspace(
        name=NAME,
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=panels, is_open=name in ("Loss", "Quality")) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=30),
    )


def main() -> None:
    defaults = LoggerConfig()
    parser = argparse.ArgumentParser(prog="python -m llm_lightning.tracking.dashboard", description=__doc__)
    parser.add_argument("--project", default=defaults.project)
    parser.add_argument("--entity", help="user or team; by default that of the key")
    options = parser.parse_args()
    try:
        if read_mode().name != "online":
            preview = workspace(options.entity or "<entity>", options.project)
            print("no W&B key is configured: this is what would be sent", file=sys.stderr)
            # private; read in wandb-workspaces 0.4.13: built through W&B's own schema, which refuses what it does not know
            print(json.dumps(preview._spec, indent=2))
            return
        import wandb

        try:
            print(workspace(options.entity or str(wandb.Api().default_entity), options.project).save().url)
        except (wandb.Error, OSError, ValueError) as error:
            raise RunError(f"W&B does not take the workspace ({error}).") from error
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
