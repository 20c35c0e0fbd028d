"""Energy: every kWh belongs to one phase, over resumes too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llm_lightning.config.schema import CallbacksConfig
from llm_lightning.tracking.energy import READ, Energy


class Meter:
    """codecarbon's tracker, with a clock that is turned by hand; a tick is 1 kWh of CPU and 2 of memory."""

    def __init__(self) -> None:
        self.ticks = self.measured = 0
        self.broken = False
        self._hardware: list[Any] = [type("CPU", (), {"_mode": "intel_rapl"})(), type("GPU", (), {})(), type("RAM", (), {})()]

    def flush(self) -> None:
        if self.broken:
            raise OSError("no such device")
        self.measured = self.ticks

    def stop(self) -> None: ...

    def _prepare_emissions_data(self) -> Any:
        values = {"energy_consumed": 3.0, "emissions": 1.5, "cpu_energy": 1.0, "gpu_energy": 0.0, "ram_energy": 2.0}
        return SimpleNamespace(**{name: value * self.measured for name, value in values.items()})


def metered() -> tuple[Energy, Meter]:
    energy, meter = Energy(CallbacksConfig(energy=False)), Meter()
    energy._tracker = meter
    return energy, meter


def test_phases_add_up_to_the_whole_and_say_how_they_are_known() -> None:
    energy, meter = metered()
    for ticks, phase in ((1, "train"), (10, "validation"), (2, "train"), (20, "test"), (3, "test")):
        meter.ticks += ticks
        energy.enter(phase)
    meter.ticks += 1
    found = energy.stop(tokens=1000)
    assert {phase: usage["kwh"] for phase, usage in found["phases"].items()} == {
        "setup": 3,
        "train": 90,
        "validation": 6,
        "test": 12,
    }
    assert all(found[name] == pytest.approx(sum(usage[name] for usage in found["phases"].values())) for name in READ)
    assert (found["kwh"], found["cpu_kwh"], found["memory_kwh"], found["co2eq_kg"]) == (111, 37, 74, 55.5)
    assert found["joules_per_token"] == pytest.approx(90 * 3.6e6 / 1000)
    assert found["sources"] == {"cpu": "measured (RAPL)", "gpu": "measured (NVML)", "memory": found["sources"]["memory"]}
    assert found["sources"]["memory"].startswith("estimated")


def test_what_was_used_before_a_resume_counts() -> None:
    first, meter = metered()
    meter.ticks = 1
    first.enter("train")
    meter.ticks = meter.measured = 5
    state = first.state_dict()
    second, meter = metered()
    second.load_state_dict(state)
    meter.ticks = 2
    second.enter("train")
    assert second.usage()["kwh"] == 3 * (5 + 2)
    assert {phase: usage["kwh"] for phase, usage in second.phases.items()} == {"setup": 9, "train": 12}


def test_a_meter_that_breaks_stops_nothing() -> None:
    energy, meter = metered()
    meter.broken = True
    energy.enter("train")
    assert energy.stop(tokens=1) == {"kwh": None, "co2eq_kg": None}
