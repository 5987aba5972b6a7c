"""The chapters of the report: each takes a study and gives a section of HTML with its figures."""
