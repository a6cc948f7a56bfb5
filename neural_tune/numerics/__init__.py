"""The arithmetic of quantization that all frameworks share: histograms, observers, scales and zero points, factors per channel. numpy in, numpy out."""
