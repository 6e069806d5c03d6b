"""What benchmarks share: options, pictures and their judgement, results and their tables."""
