"""rxnmapper's ALBERT (tests/data/rxnmapper): a real pretrained masked language model over reaction SMILES."""

import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

RXNMAPPER = Path(__file__).parents[1] / "data" / "rxnmapper"
MASK = 14
# An atom in brackets, an element of two letters, the reaction's arrow, a ring number of two digits, or one character.
_TOKEN = r"\[[^\]]+\]|Br|Cl|>>|%\d\d|."

REACTIONS = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
    "O=C(O)c1ccccc1.OC>>COC(=O)c1ccccc1",
)


def rxn_tokenizer() -> PreTrainedTokenizerFast:
    """Its vocabulary under a tokenizer that splits SMILES; `[CLS]` and `[SEP]` around each reaction."""
    words = (RXNMAPPER / "vocab.txt").read_text().split()
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), "isolated")
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def write_rxnmapper(folder: Path) -> Path:
    """The checkpoint with that tokenizer beside it, as a Hub repository would hold it."""
    shutil.copytree(RXNMAPPER, folder, dirs_exist_ok=True)
    rxn_tokenizer().save_pretrained(folder)
    return folder
