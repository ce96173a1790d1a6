from dataclasses import dataclass

@dataclass
class WordOutput:
    hits: int
    substitutions: int
    insertions: int
    deletions: int

def process_words(reference: str, hypothesis: str) -> WordOutput: ...
