"""Plan and packed rows: which views make up which row, made while the model trains; what may not be trained on."""
