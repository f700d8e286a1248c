"""Whether prediction helps: trainings of small models with several optimizers."""
