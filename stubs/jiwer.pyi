from dataclasses import dataclass

@dataclass
class AlignmentChunk:
    type: str
    ref_start_idx: int
    ref_end_idx: int
    hyp_start_idx: int
    hyp_end_idx: int

@dataclass
class WordOutput:
    alignments: list[list[AlignmentChunk]]
    hits: int
    substitutions: int
    insertions: int
    deletions: int

def process_words(reference: str, hypothesis: str) -> WordOutput: ...
