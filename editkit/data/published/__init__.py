"""Published data sets in the layouts that their owners distribute, read without converting or extracting anything."""
