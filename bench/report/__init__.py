"""Results as tables, plots and documents. Imports neither the package nor what measures."""
