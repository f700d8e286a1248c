"""What a step costs: time, host time and memory, side by side with other optimizers."""
