"""The Pulumi plugin as one who comes by a meeting: MEETING (the folder) and MEETING_WHO say which and as whom."""
