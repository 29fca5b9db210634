"""How the package is written: Latin names where code is called, Greek in formulas, plain words."""

import ast
import io
import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "vaelab").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data/README.md",
    ROOT / "course/INSTRUCTORS.md",
    ROOT / "course/START.py",
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------------------------------ names


def called_by_greek(tree: ast.AST) -> list[str]:
    """Names that are not ASCII in signatures, attributes, keywords, and loops over records."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.append(node.name)
            case ast.arg() | ast.keyword():
                found.append(node.arg)
            case ast.Attribute():
                found.append(node.attr)
            case ast.For() | ast.comprehension():
                found += [n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)]
    return [name for name in found if name and not name.isascii()]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_latin_in_signatures_greek_in_formulas(path):
    assert called_by_greek(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "def f(θ): ...",
        "def f(*, θ=1): ...",
        "def f(*θ): ...",
        "def log_θ(): ...",
        "class Γ: ...",
        "f = lambda τ: τ",
        "f(θ=1)",
        "self.θ = 1",
        "for γ in batches: ...",
        "x = [γ for γ in batches]",
    ],
)
def test_a_greek_name_is_seen(code):
    assert called_by_greek(ast.parse(code))


def test_a_greek_name_in_a_formula_is_allowed():
    assert called_by_greek(ast.parse("def f(mean):\n    μ = mean\n    return μ**2")) == []


# ------------------------------------------------------------------------------------------ words

# Pattern, a phrase at which readers stopped, and what to write instead.
STOPPED_AT = [
    (r"\b[Aa]s of (?=[:`])", "As of :class:`vaelab.VAE`", "Same as in :class:`vaelab.VAE`"),
    (
        r"(?<!here )\b(is|are|was|were) no (?!longer\b|more\b|such\b)",
        "The z1 term is no KL",
        "The z1 term is not a KL",
    ),
    (r"(?<!here )\b(is|are) none\b(?! of)", "A distance that is none", "Not quite a distance"),
    (r"\bhangs? on\b", "hangs on z2", "depends on z2"),
    (
        r"\bbesides?\b",
        "trained besides, beside the bound",
        "trained in addition, next to the bound",
    ),
    (
        r"\b(tell|tells|told)( \w+){0,2} the batch\b",
        "is told the batch",
        "receives the batch as input",
    ),
    (
        r"\b(not|to|can't|cannot) be had\b|\bhad (back|again)\b",
        "could not be had, had again",
        "is not available, can be reproduced",
    ),
    (r"\banew\b", "measured anew", "sampled again"),
    (r"\b[Mm]end(s|ed|ing)?\b", "mend it with", "fix it with"),
    (r"\bso many at a time\b", "so many at a time as fit", "as many at a time as fit"),
    (r"\ball but (a|an|the|impossible)\b", "all but the prior", "almost the prior"),
    (r"(^|[.:;] )Who(ever)? (?!is )\w+s\b", "Who writes MSE + KL says", "If you write MSE + KL"),
    (
        r"\b(These|Those|This) \w+ (we|you) \w+\.",
        "These numbers we want.",
        "We want these numbers.",
    ),
    (
        r"\b(aslant|foretold|lest|whereof|thereof|in vain)\b",
        "lies aslant, lest it be lost",
        "is tilted, so that none escapes",
    ),
    (r"\b[Kk]nows? (of )?no(thing|ne)?\b", "knows of no zeros", "predicts almost no zeros"),
    (
        r"\b([Hh]old|[Hh]olds|[Hh]eld)\b[^.:;]{0,30}\bagainst\b",
        "hold the two against each other",
        "compare the two with each other",
    ),
    (
        r"\b(same money|(makes|is|are) \w* ?dear)\b",
        "for the same money, makes it dear",
        "for the same cost, makes it expensive",
    ),
    (r"\bplainly\b", "types that it plainly hasn't", "types that it clearly does not have"),
    (r"\balike\b", "if all K are used alike", "if all K are used equally"),
    (r"\bby lot\b", "as by lot", "as expected by chance"),
    (r"\brising evenly\b", "rising evenly", "rising linearly"),
    (r"\bput right\b", "has to be put right", "has to be corrected"),
    (r"\bteach(es)? (\w+ ){1,2}nothing\b", "teach a model nothing", "a model cannot learn from"),
    (r"\bsomebody's\b", "is somebody's parent", "is named as a parent"),
    (
        r"\b([Oo]ne|[Rr]ows?|[Cc]olumns?|[Dd]raws?( of \w+)?|[Cc]ells|[Cc]ounts|bytes|[Nn]umbers?|"
        r"[Ll]ines?|[Pp]asses|[Dd]ecodes|θ) an? (cell|gene|minibatch|batch|block|submission|type|"
        r"cluster|label|term|line|learner|epoch|claim|check)\b",
        "Draws of z a cell, one a gene",
        "Draws of z per cell, one per gene",
    ),
    (r"(^|\n) *Whether\b", "Whether a matrix is one of h5py.", "True if the matrix is in a file."),
]
# A description stands on its own: it starts neither with "Of" nor with a bare symbol.
FRAGMENT = re.compile(r"^(Of|From|With|There|By)\b|^(\w|ℓ|[α-ωΑ-Ω])(_\w)?[,.]? (?!is\b)|^\w\.$")
NOT_FRAGMENTS = re.compile(r"^(A|[1-9]) ")
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises")


def words_of(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def stopped_at(text: str) -> list[str]:
    """The phrases in a text that readers stopped at, each with what to write instead."""
    return [
        f"{found[0]!r} as in {example!r}: write as in {better!r}"
        for pattern, example, better in STOPPED_AT
        if (found := re.search(pattern, text))
    ]


def prose(path: Path) -> list[tuple[int, str]]:
    """Docstrings, comments and messages of a module, or the paragraphs of a page, by line."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        ends = [m.end() for m in re.finditer(r"\n\s*\n|\n(?=[-|#]|\d\.)", source)]
        return [
            (source[:start].count("\n") + 1, words_of(source[start:stop]))
            for start, stop in pairwise([0, *ends, len(source)])
        ]
    texts, in_message = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            in_message |= {id(part) for part in node.values}
            parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
            texts.append((node.lineno, words_of("".join(parts))))
        elif isinstance(getattr(node, "value", None), str) and id(node) not in in_message:
            texts.append((node.lineno, words_of(node.value)))
    comment, first, last = [], 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                texts.append((first, " ".join(comment)))
                comment, first = [], token.start[0]
            comment.append(token.string.lstrip("# "))
            last = token.start[0]
    return [*texts, (first, " ".join(comment))]


@pytest.mark.parametrize("path", [*MODULES, *PAGES], ids=name_of)
def test_no_words_that_readers_stopped_at(path):
    found = [f"{name_of(path)}:{i}: {s}" for i, text in prose(path) for s in stopped_at(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("pattern", "example", "better"), STOPPED_AT)
def test_a_phrase_is_seen_and_its_better_form_is_not(pattern, example, better):
    assert re.search(pattern, example) and not stopped_at(better)


def test_phrases_are_seen_in_docstrings_comments_and_messages(tmp_path):
    page, module = tmp_path / "page.md", tmp_path / "module.py"
    page.write_text("# Title\n\nA KL that hangs\non z.\n\n- what cannot\n  be had\n")
    module.write_text(
        '"""It hangs\non z."""\nraise ValueError(\n    f"{x} hangs "\n    "on z"\n)\n'
        "x = 1  # it hangs\n# on z\n"
    )
    assert [i for i, text in prose(page) if stopped_at(text)] == [3, 6]
    assert [i for i, text in prose(module) if stopped_at(text)] == [1, 4, 7]


# ------------------------------------------------------------------------------------ docstrings


def descriptions(docstring: str) -> list[str]:
    """The first line of the description of each parameter, return value and error."""
    found, section, lines = [], None, docstring.splitlines()
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if after.strip("- ") == "" and after.strip():
            section = line.strip()
        elif section in ("Returns", "Yields") and set(before.strip()) == {"-"}:
            found.append(line)
        elif section in SECTIONS and line.startswith("    ") and not before.startswith("    "):
            found.append(line.strip())
    return [line.strip() for line in found]


def fragments(docstring: str) -> list[str]:
    return [
        line
        for line in descriptions(docstring)
        if FRAGMENT.search(line) and not NOT_FRAGMENTS.search(line)
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_description_stands_on_its_own(path):
    found = [
        f"{name_of(path)}: {getattr(node, 'name', 'module')}: {line}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for line in fragments(ast.get_docstring(node) or "")
    ]
    assert not found, "\n".join(found)


def test_fragments_are_seen():
    docstring = """Draw.

    Parameters
    ----------
    n_genes
        G, number of genes.
    n_samples
        S.
    library
        ℓ, expected total
        of a cell's counts.
    temperature
        τ of a relaxed draw.
    seed
        Of the draws.
    cells
        The cells.
    best
        A file to write.

    Returns
    -------
    Of the shape of f's values.

    Raises
    ------
    ValueError
        With the first value.
    """
    assert fragments(ast.get_docstring(ast.parse(f'"""{docstring}"""'))) == [
        "G, number of genes.",
        "S.",
        "ℓ, expected total",
        "τ of a relaxed draw.",
        "Of the draws.",
        "Of the shape of f's values.",
        "With the first value.",
    ]
