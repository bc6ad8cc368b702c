"""The data room: image sets in, uint8 batches out. It knows neither hosts nor models."""
