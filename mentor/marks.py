"""What prompts are marked with; imports nothing, so that whoever handles text alone need not wait for torch."""

IMAGE_MARK = "<image>"
