"""Energy and CO2 of a run, by codecarbon without a network."""

from __future__ import annotations

import logging
import threading
from typing import Any

from llm_lightning.config import CallbacksConfig


class Energy:
    """Measures from its creation to `stop`; starts in the background, for probing the hardware takes codecarbon seconds."""

    def __init__(self, config: CallbacksConfig) -> None:
        self._tracker: Any = None
        self._thread: threading.Thread | None = None
        if config.energy:
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

    def stop(self) -> dict[str, float | None]:
        """kWh and kg of CO2 equivalents; null where they could not be measured."""
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._tracker is None:
            return {"kwh": None, "co2eq_kg": None}
        self._tracker.stop()
        data = self._tracker.final_emissions_data
        return {"kwh": data.energy_consumed, "co2eq_kg": data.emissions}
