"""Energy and CO2 of a run, by codecarbon without a network; what was used before a resume counts."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from lightning.pytorch.callbacks import Callback

from llm_lightning.config import CallbacksConfig

Usage = dict[str, float | None]
"""kWh and kg of CO2 equivalents; null where they could not be measured."""


class Energy(Callback):
    """Measures from its creation to `stop`; starts in the background, for probing the hardware takes codecarbon seconds."""

    def __init__(self, config: CallbacksConfig) -> None:
        self._tracker: Any = None
        self._thread: threading.Thread | None = None
        self._before: Usage = {"kwh": 0.0, "co2eq_kg": 0.0}
        if config.energy and os.environ.get("LOCAL_RANK", "0") == "0":  # it measures the machine, not the process
            self._thread = threading.Thread(target=self._start, args=(config.country,), daemon=True)
            self._thread.start()

    def _start(self, country: str) -> None:
        logging.getLogger("codecarbon").disabled = True
        try:
            from codecarbon import OfflineEmissionsTracker

            tracker = OfflineEmissionsTracker(
                country_iso_code=country,
                save_to_file=False,
                log_level="critical",
                measure_power_secs=15,
                allow_multiple_runs=True,
            )
            tracker.start()
            self._tracker = tracker
        except Exception as error:  # a meter that does not work must not stop a training
            logging.getLogger(__name__).warning("energy is not measured: %s", error)

    def used(self) -> Usage:
        """So far, to the last of codecarbon's measurements."""
        if self._tracker is None:
            return {"kwh": None, "co2eq_kg": None}
        return self._with_before(self._tracker._prepare_emissions_data())

    def stop(self) -> Usage:
        """In all."""
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._tracker is None:
            return {"kwh": None, "co2eq_kg": None}
        self._tracker.stop()
        return self._with_before(self._tracker.final_emissions_data)

    def _with_before(self, data: Any) -> Usage:
        now = {"kwh": data.energy_consumed, "co2eq_kg": data.emissions}
        return {name: (self._before[name] or 0.0) + value for name, value in now.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.used()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state
