"""What other libraries say when they fail, short enough for a message of one line."""

_LONGEST = 200  # characters: a library may repeat the whole of a damaged value


def reason(error: Exception) -> str:
    """Return what `error` says in one line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
