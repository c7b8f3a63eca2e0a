"""The whole HUDD loop on handwritten digits, against the paper's two baselines."""
