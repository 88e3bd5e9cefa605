"""The section on what the corpora hold: repetition and variety, their own toxicity, labels, and distinctive words."""

from __future__ import annotations

from unidetox_ray.report import readers
from unidetox_ray.report.content import Alone, Content, Gram, Judge, Pair
from unidetox_ray.report.document import Block, Cell, Column, Facts, Row, Section, Table, prose, row
from unidetox_ray.report.model import Metric, Run
from unidetox_ray.report.notes import REDACTION
from unidetox_ray.report.result_sections import metric_cell
from unidetox_ray.report.text import MISSING, count, number, percent, plural, sample

ORDER_NAMES = {1: "words", 2: "pairs", 3: "triples"}
SHOWN_PER_ORDER = 10


def content(run: Run, show_text: bool) -> Section | None:
    """What every corpus is like and how it differs from the reference; None without an analysis."""
    found = run.content
    if found is None or not found.corpora:
        return None
    toxicity = [judge for judge in found.judges if judge.kind == "toxicity"]
    blocks: list[Block] = [_alone(found, toxicity[0] if toxicity else None)]
    blocks += [_toxicity(judge, found) for judge in toxicity[1:]]
    blocks += [block for judge in found.judges if judge.kind != "toxicity" for block in _labels(judge)]
    if found.pairs:
        blocks.append(_overlap(found.pairs))
        blocks += [_distinctive(pair, found, show_text) for pair in found.pairs if pair.ours or pair.theirs]
    if any(entry.words for entry in found.corpora):
        blocks.append(_heaviest(found.corpora, show_text))
    if not show_text:
        blocks.append(prose(REDACTION, kind="note"))
    blocks.append(prose(_reading(found), kind="note"))
    return Section("content", "Content of the corpora", tuple(blocks))


def _reading(found: Content) -> str:
    return (
        "z compares how often two corpora use an n-gram (log-odds ratio under an informative prior, Monroe et al. 2008); it ranks "
        f"and tests nothing. Listed are n-grams with at least {found.min_count} uses in at least {plural(found.min_texts, 'text')} "
        "of both corpora together. Jaccard over all words falls as corpora grow or differ in size. Differences between corpora are "
        "of independent texts. A corpus of another register differs in all of this without being cleaner."
    )


def _metrics_of(judge: Judge | None, corpus: str) -> tuple[Metric, Metric]:
    for name, _, mean, share in judge.numbers if judge else ():
        if name == corpus:
            return mean, share
    return Metric(), Metric()


def _alone(found: Content, judge: Judge | None) -> Table:
    rows: list[Row] = []
    for entry in found.corpora:
        title = f"{count(entry.empty)} empty texts left out" if entry.empty else ""
        tokens = count(entry.tokens) if entry.tokens is not None else MISSING
        mean, share = _metrics_of(judge, entry.corpus)
        name = entry.corpus + (" (reference)" if entry.corpus == found.reference and found.pairs else "")
        rows.append(
            row(
                name,
                Cell(count(entry.texts), title=title),
                Cell(tokens, title="the file does not say" if tokens == MISSING else ""),
                number(entry.mean_words),
                count(entry.types),
                number(entry.distinct),
                number(entry.distinct_equal),
                percent(entry.repeated),
                count(entry.duplicates),
                number(entry.compression),
                *([metric_cell(mean, "toxicity"), metric_cell(share, "toxicity")] if judge else []),
            )
        )
    columns = [
        Column("corpus", numeric=False),
        Column("texts"),
        Column("tokens", "of the base model"),
        Column("words a text", "mean"),
        Column("different words"),
        Column("distinct pairs", "different word pairs over all word pairs of the corpus"),
        Column("at equal size", f"the same within the first {count(found.equal_words)} words of each corpus"),
        Column("repeated triples", "share of a text's word triples that it already held; mean over texts"),
        Column("duplicates", "texts with the same words as an earlier one"),
        Column("compression", "bytes over deflated bytes; higher is more repetitive"),
    ]
    caption = "The corpora as text"
    if judge:
        columns += [
            Column("mean toxicity", f"of its texts, by {judge.name}"),
            Column("toxic texts", f"share of its texts scored above {found.threshold:g} by {judge.name}"),
        ]
        caption += f"; their own toxicity by {judge.name}, 95 % intervals, Δ: difference to {found.reference}"
    return Table(caption, tuple(columns), tuple(rows))


def _toxicity(judge: Judge, found: Content) -> Table:
    rows = [
        row(corpus, metric_cell(mean, "toxicity"), metric_cell(share, "toxicity"), count(mean.n))
        for corpus, _, mean, share in judge.numbers
    ]
    columns = (
        Column("corpus", numeric=False),
        Column("mean toxicity"),
        Column("toxic texts", f"share of texts scored above {found.threshold:g}"),
        Column("texts"),
    )
    return Table(f"The corpora's own toxicity by {judge.name}", columns, tuple(rows))


def _labels(judge: Judge) -> list[Block]:
    """Share of texts with each label, label by label, and what the classifier is."""
    rows, last = [], ""
    for corpus, label, mean, share in sorted(judge.numbers, key=lambda entry: entry[1]):
        rows.append(
            row(
                label,
                corpus,
                metric_cell(share, ""),
                metric_cell(mean, ""),
                count(share.n),
                first=label != last,
            )
        )
        last = label
    columns = (
        Column("label", numeric=False),
        Column("corpus", numeric=False),
        Column("share of texts", "that the classifier gives this label"),
        Column("mean probability"),
        Column("texts"),
    )
    table = Table(f"Labels by {judge.name}, with differences to the reference", columns, tuple(rows))
    facts = [*readers.flatten(judge.about)]
    facts += [
        (f"texts of {name} that fill the limit", count(texts)) for name, texts in judge.at_limit.items()
    ]
    return [table, Facts(f"Classifier {judge.name}", tuple(facts))]


def _overlap(pairs: tuple[Pair, ...]) -> Table:
    names = list(pairs[0].overlap)
    rows = [
        row(
            pair.corpus,
            pair.reference,
            *(number(pair.overlap.get(name)) for name in names),
            number(pair.cosine),
            count(pair.shared_texts),
        )
        for pair in pairs
    ]
    columns = (
        Column("corpus", numeric=False),
        Column("reference", numeric=False),
        *(Column(_overlap_name(name), "Jaccard index: shared over all, 0 to 1") for name in names),
        Column("TF-IDF cosine", "of the mean word weights, 0 to 1"),
        Column("shared texts"),
    )
    return Table("Overlap of vocabularies", columns, tuple(rows))


def _overlap_name(name: str) -> str:
    last = name.rpartition("_")[2]
    if name.startswith("jaccard_top_"):
        return f"top {last} words"
    return f"all {ORDER_NAMES.get(int(last), name) if last.isdigit() else name}"


def _distinctive(pair: Pair, found: Content, show_text: bool) -> Table:
    rows: list[Row] = []
    for n, name in ORDER_NAMES.items():
        for owner, grams in ((pair.corpus, pair.ours), (pair.reference, pair.theirs)):
            shown = [gram for gram in grams if gram.n == n][:SHOWN_PER_ORDER]
            rows += [_gram(gram, owner, name, show_text, first=gram is shown[0]) for gram in shown]
    columns = (
        Column("n-gram", "masked unless the report shows text", numeric=False),
        Column("more in", numeric=False),
        Column("of", numeric=False),
        Column("z"),
        Column(f"uses in {pair.corpus}"),
        Column(f"in {pair.reference}"),
        Column(f"texts of {pair.corpus}"),
        Column(f"of {pair.reference}"),
    )
    shown_as = "as they are" if show_text else "redacted"
    return Table(f"Most distinctive of {pair.corpus} and {pair.reference}, {shown_as}", columns, tuple(rows))


def _gram(gram: Gram, owner: str, name: str, show_text: bool, *, first: bool) -> Row:
    values = [count(value) for value in (*gram.uses, *gram.texts)]
    z = Cell(number(gram.z, signed=True), sort=gram.z)
    return row(sample(gram.ngram, show_text, 80), owner, name, z, *values, first=first)


def _heaviest(corpora: tuple[Alone, ...], show_text: bool) -> Table:
    rows = [
        row(
            entry.corpus,
            sample(", ".join(word for word, _ in entry.words), show_text),
            number(entry.words[0][1]),
        )
        for entry in corpora
        if entry.words
    ]
    columns = (
        Column("corpus", numeric=False),
        Column("words", numeric=False),
        Column("largest weight", "mean TF-IDF over the corpus's texts"),
    )
    return Table("Heaviest words by TF-IDF over all corpora", columns, tuple(rows))
