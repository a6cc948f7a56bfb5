"""The arithmetic of quantization that all frameworks share: histograms, observers, scales and zero points. numpy in, numpy out."""
