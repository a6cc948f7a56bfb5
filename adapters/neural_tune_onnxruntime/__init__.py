"""The ONNX Runtime adapter. Importing the package loads neither onnx nor onnxruntime; `plugin.PLUGIN` describes it."""
