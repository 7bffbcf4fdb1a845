"""What one server takes, and how it batches."""

from dataclasses import dataclass, field, fields


def _limit(default: float, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """Each is an option of the command, ``max_batch`` is ``--max-batch``; a ValueError names what cannot work."""

    max_batch: int = _limit(32, "texts that the model gets at once, each counted as often as its length beam is wide")
    max_wait: float = _limit(0.0, "milliseconds that a text waits for others while the model is free")
    max_queue: int = _limit(1024, "texts that may wait; a request for which there is no room gets a 503")
    max_texts: int = _limit(64, "texts of a request")
    max_characters: int = _limit(10_000, "characters of a text, both of a pair together")
    max_body: int = _limit(2**20, "bytes of a request's body")
    max_seconds: float = _limit(30.0, "seconds within which a request's body must arrive")
    max_iterations: int = _limit(20, "iterations of a request")
    max_nbest: int = _limit(10, "answers to each text of a request")
    max_length_beam: int = _limit(10, "lengths decoded for each text of a request")
    max_shutdown: float = _limit(60.0, "seconds that requests in flight have to finish after a SIGTERM")

    def __post_init__(self):
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name == "max_wait" else 1
            if not value >= least:
                raise ValueError(f"{option(each.name)} is {value}, expected at least {least}")
        if self.max_texts > self.max_queue:
            raise ValueError(
                f"--max-texts {self.max_texts} is more than --max-queue {self.max_queue}: such requests never fit"
            )


def option(name: str) -> str:
    """How the command line spells a limit."""
    return "--" + name.replace("_", "-")
