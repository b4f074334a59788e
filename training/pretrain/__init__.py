"""Stage 1, AGBP: a backbone learns from unlabelled images where their anomalies are (needs the ``train`` extra)."""
