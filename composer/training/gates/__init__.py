"""Training gates over frozen LoRAs: judged by the LoRAs, or as MoLE was published."""
