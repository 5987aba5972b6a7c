"""From an encoded file to the pixels a model was trained on: decode, resize, crop, presets."""
