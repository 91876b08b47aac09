"""What a worker process runs beside the user's workflows and activities."""
