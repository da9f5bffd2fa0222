"""How models write reasoning and tool calls: one file per format in `data/`, chosen by the chat template."""
