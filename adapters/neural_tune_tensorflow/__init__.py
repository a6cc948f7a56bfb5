"""The TensorFlow adapter of neural_tune: int8 graphs on stock TensorFlow, and LiteRT."""
