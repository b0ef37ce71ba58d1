"""What a run has when it ends, in words."""


def what_is_kept(saved: int, lost: int) -> str:
    """Such as "step 4 is saved; steps 5 to 6 are lost".

    Args:
        saved: Step of its newest checkpoint; 0: none.
        lost: Steps beyond that.
    """
    kept = f"step {saved} is saved" if saved else "nothing was saved"
    if lost <= 0:
        return kept if saved else "no step was done yet"
    return f"{kept}; {steps_lost(saved, lost)}"


def steps_lost(saved: int, lost: int) -> str:
    """Such as "steps 5 to 6 are lost"."""
    return f"step {saved + 1} is lost" if lost == 1 else f"steps {saved + 1} to {saved + lost} are lost"
