"""Measure energy and CO2 of a run, by codecarbon without a network; the totals include the time before a resume.

Each joule belongs to a phase: setup, train, or the split that is being evaluated, during training as well as at its end. If the hardware
has a readable meter (RAPL of a CPU, NVML of a GPU) figures are measured; otherwise they are estimated from the load and the processor's
maximum power. The machine is metered, not the process: other work on it counts too.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning import distributed
from llm_lightning.config.schema import CallbacksConfig

READ = {
    "kwh": "energy_consumed",
    "co2eq_kg": "emissions",
    "cpu_kwh": "cpu_energy",
    "gpu_kwh": "gpu_energy",
    "memory_kwh": "ram_energy",
}
"""Reported quantity -> its name in codecarbon; CO2 in kg of CO2 equivalents."""
SOURCES = {
    "intel_rapl": "measured (RAPL)",
    "intel_power_gadget": "measured (Power Gadget)",
    "windows_emi": "measured (EMI)",
    "cpu_load": "estimated (load and rated power)",
    "constant": "estimated (half the rated power)",
    "GPU": "measured (NVML)",
    "RAM": "estimated (a module's usual power)",
}
"""How codecarbon obtains its figures, by a processor's mode or the kind of hardware."""
PARTS = {"CPU": "cpu", "GPU": "gpu", "RAM": "memory", "AppleSiliconChip": "cpu"}
JOULES = 3.6e6  # of a kWh
Usage = dict[str, float]

log = logging.getLogger(__name__)


class Energy(Callback):
    """Callback that measures from its creation to `stop`. It starts in the background: codecarbon takes seconds to probe the hardware."""

    def __init__(self, config: CallbacksConfig) -> None:
        self.country = config.country
        self.phases: dict[str, Usage] = {}
        """The usage of each phase up to the last count."""
        self._phase = "setup"
        self._counted = dict.fromkeys(READ, 0.0)
        self._tracker: Any = None
        self._thread: threading.Thread | None = None
        if config.energy and distributed.local_rank() == 0:  # it measures the machine, not the process
            self._thread = threading.Thread(target=self._start, daemon=True)
            self._thread.start()

    def _start(self) -> None:
        logging.getLogger("codecarbon").disabled = True
        try:
            from codecarbon import OfflineEmissionsTracker

            tracker = OfflineEmissionsTracker(
                country_iso_code=self.country,
                save_to_file=False,
                log_level="critical",
                measure_power_secs=15,
                allow_multiple_runs=True,
            )
            tracker.start()
            self._tracker = tracker
        except Exception as error:
            self._give_up(error)

    # ---- phases ----

    def enter(self, phase: str) -> None:
        """Count usage from now on towards a phase."""
        if phase == self._phase:
            return
        self._count(measure=True)
        self._phase = phase

    def _count(self, measure: bool) -> None:
        """Add the usage since the last count to the running phase, up to now (`measure`) or to codecarbon's last measurement."""
        if self._tracker is None:
            return
        try:
            if measure:
                self._tracker.flush()
            # private, as are `_hardware` and `_mode`; read in codecarbon 3.3
            data = self._tracker._prepare_emissions_data()
        except Exception as error:
            self._give_up(error)
            return
        now, phase = {name: getattr(data, source) for name, source in READ.items()}, self.phases.setdefault(self._phase, {})
        for name in READ:
            phase[name] = phase.get(name, 0.0) + now[name] - self._counted[name]
        self._counted = now

    def _give_up(self, error: Exception) -> None:
        """Stop measuring: a meter that does not work must not stop a training."""
        self._tracker = None
        log.warning("energy is not measured: %s", error)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.enter("train")

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.enter(module.split)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.enter("train")

    # ---- figures ----

    def usage(self) -> Usage:
        """Return the total usage up to codecarbon's last measurement; empty if nothing was measured."""
        self._count(measure=False)
        return {name: sum(phase[name] for phase in self.phases.values()) for name in READ} if self.phases else {}

    def stop(self, tokens: int) -> dict[str, Any]:
        """Return the energy of all machines, by hardware and by phase, and how it was obtained; `tokens`: those trained. A collective."""
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._count(measure=True)
        phases = self._sum_phases()
        if self._tracker is None:
            return {"kwh": None, "co2eq_kg": None}
        total = {name: sum(phase[name] for phase in phases.values()) for name in READ}
        sources = {PARTS.get(type(part).__name__, "other"): _source(part) for part in self._tracker._hardware}
        self._tracker.stop()
        self._tracker = None
        train = phases.get("train", {}).get("kwh")
        return {
            **total,
            "joules_per_token": train * JOULES / tokens if train and tokens else None,
            "phases": phases,
            "sources": sources,
            "country": self.country,
        }

    def _sum_phases(self) -> dict[str, Usage]:
        """Return the usage of each phase, summed over all machines; each has its own meter. A collective."""
        phases: dict[str, Usage] = {}
        for machine in distributed.gather(self.phases):
            for phase, usage in machine.items():
                total = phases.setdefault(phase, dict.fromkeys(READ, 0.0))
                for figure in READ:
                    total[figure] += usage.get(figure, 0.0)
        return phases

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of all machines. A collective: Lightning asks every rank for its callbacks' states."""
        self._count(measure=False)
        return {"phases": self._sum_phases()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of all machines, on rank 0 alone."""
        if not distributed.is_rank_zero():
            return
        for name, before in state.get("phases", {}).items():
            phase = self.phases.setdefault(name, {})
            for figure in READ:
                phase[figure] = phase.get(figure, 0.0) + before[figure]


def _source(hardware: Any) -> str:
    return SOURCES.get(getattr(hardware, "_mode", type(hardware).__name__), "estimated")
