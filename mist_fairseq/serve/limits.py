"""What one server takes, and how it batches."""

from dataclasses import dataclass, fields

from mist_fairseq.generate.decoding import option


@dataclass(frozen=True)
class Limits:
    """Each is an option of the command, ``max_batch`` is ``--max-batch``; a ValueError names what cannot work."""

    max_batch: int = option(32, "texts that the model gets at once, each counted as often as it has candidates")
    max_wait: float = option(0.0, "milliseconds that a text waits for others while the model is free")
    max_queue: int = option(1024, "texts that may wait; a request for which there is no room gets a 503")
    max_texts: int = option(64, "texts of a request")
    max_characters: int = option(10_000, "characters of a text, both of a pair together")
    max_body: int = option(2**20, "bytes of a request's body")
    max_head_seconds: float = option(10.0, "seconds within which a request's head must arrive")
    max_seconds: float = option(30.0, "seconds within which a request's body must arrive")
    max_iterations: int = option(20, "iterations of a request")
    max_nbest: int = option(10, "answers to each text of a request")
    max_length_beam: int = option(10, "lengths decoded for each text of a request")
    max_shutdown: float = option(60.0, "seconds that requests in flight have to finish after a SIGTERM")

    def __post_init__(self):
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name == "max_wait" else 1
            if not value >= least:
                raise ValueError(f"{flag(each.name)} is {value}, expected at least {least}")
        if self.max_texts > self.max_queue:
            given = f"--max-texts {self.max_texts} is more than --max-queue {self.max_queue}"
            raise ValueError(f"{given}: such requests never fit")


def flag(name: str) -> str:
    """How the command line spells a limit."""
    return "--" + name.replace("_", "-")
