"""7 CONTEXT. What a result says besides its inputs: its version, what it replaces, what was missing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Predecessor:
    """An object of ours that a result replaces."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class ResultContext:
    """Where a result stands among others on the same study."""

    version: int = 1  # of the study
    predecessors: tuple[Predecessor, ...] = ()
    remarks: tuple[str, ...] = ()  # sentences for the report, e.g. that images came late
    inputs: str = ""  # "12/40" when fewer images arrived than were expected

    def words(self) -> tuple[str, ...]:
        """What UIDs of the result hang on: another predecessor or remark makes another object.

        The version alone does not: the same images give the same result again.
        """
        replaced = tuple(sorted(each.sop_instance_uid for each in self.predecessors))
        return (*replaced, *self.remarks, *((self.inputs,) if self.inputs else ()))

    def sentences(self) -> tuple[str, ...]:
        """What a reader of the report must know."""
        replaced = "This result replaces an earlier one of the same study." if self.predecessors else ""
        missing = f"Only {self.inputs} of the expected images had arrived." if self.inputs else ""
        return tuple(filter(None, (replaced, missing, *self.remarks)))


NO_CONTEXT = ResultContext()
