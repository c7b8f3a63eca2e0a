"""The demonstrations: HUDD's whole loop on handwritten digits, and heatmaps of real models on photographs."""
