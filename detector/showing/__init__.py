"""Results as data frames and plots, by libraries that are loaded when they are asked for."""
