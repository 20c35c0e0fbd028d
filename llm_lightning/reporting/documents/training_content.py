"""Fill the public summary of the training content of a general-purpose AI model, by the European Commission's template of July 2025.

The headings follow the template's numbering, in words of our own.
"""

from __future__ import annotations

from llm_lightning.reporting.documents.document import Document, Field, Section, answer, ask
from llm_lightning.reporting.documents.facts import Facts

LEGAL_SOURCE = (
    "Article 53(1)(d) of Regulation (EU) 2024/1689 (AI Act), and the European Commission's template for the public summary of training "
    "content for general-purpose AI models, published on 24 July 2025. Field names are paraphrased; the template's own text is "
    "authoritative."
)


def fill_training_content(facts: Facts) -> Document:
    """Return the summary as far as the run's record goes."""
    sections = [_identify(facts), _size(facts), _sources(facts), _processing(facts)]
    return Document("training-content-summary", "Public summary of training content", LEGAL_SOURCE, sections)


def _identify(facts: Facts) -> Section:
    origin = facts.origin
    dependency = (
        "none: trained from scratch"
        if origin is None
        else f"trained on from {origin}; that model's training content is for its provider to describe"
    )
    return Section(
        "1. General information: provider and model",
        [
            ask("1.1 Provider: name and contact", "who places the model on the market, and how to reach them"),
            ask(
                "1.1 Authorised representative in the Union",
                "name and contact, if the provider is established outside of the Union",
            ),
            answer("1.2 Model and version", facts.name, "summary.json", "the name and the version"),
            answer("1.2 Models that it depends on", dependency, "config.yaml", "the models that it was made from"),
            *([] if origin is None else [ask(f"1.2 Summary of {origin}", "a link to the public summary of that model")]),
            ask("1.2 Date of placing on the Union market", "the date"),
        ],
    )


def _size(facts: Facts) -> Section:
    tokens = facts.train_tokens
    size = None
    if tokens is not None:
        size = f"{_range_of(tokens)} ({tokens:,} tokens of the model's tokenizer, read {_passes(facts)})"
    elif facts.summary["tokens_seen"]:
        size = f"{_range_of(facts.summary['tokens_seen'])} ({facts.summary['tokens_seen']:,} tokens were read from a stream)"
    languages = (facts.run.config.get("data") or {}).get("languages") or {}
    codes = ", ".join(str(code) for code in languages.values() if code)
    return Section(
        "1.3 General information: the training data as a whole",
        [
            answer("Modalities", "text", "config.yaml", "text, images, audio, video"),
            answer("Size of the text", size, "summary.json", "below 1 billion tokens, 1 billion to 10 trillion, or above"),
            ask("Kinds of content", "fiction, news, legal texts, source code, conversations, … as far as they are in the data"),
            ask("Latest date of acquisition", "when the last of the data was obtained, and whether it goes on"),
            answer("Languages", codes, "config.yaml", "the languages of the data"),
            ask("Other characteristics", "regions, groups of people, domains; optional"),
        ],
        "The summary covers the data of this run; that of a model it starts from is covered by that model's summary.",
    )


def _range_of(tokens: int) -> str:
    if tokens < 1e9:
        return "less than 1 billion tokens"
    return "1 billion to 10 trillion tokens" if tokens <= 1e13 else "more than 10 trillion tokens"


def _passes(facts: Facts) -> str:
    return f"{facts.summary['tokens_seen'] / max(facts.train_tokens or 1, 1):.2f} times"


def _sources(facts: Facts) -> Section:
    name, listed = str(facts.summary["data"]["name"]), _describe_files(facts)
    fields: list[Field]
    if (hub := facts.hub_data) is not None:
        value = f"{hub}, from the Hugging Face hub (https://huggingface.co/datasets/{hub})"
        fields = [
            answer("2.1 Publicly available data sets", value, "config.yaml", "names and links"),
            ask("2.1 Whether that data set is public there, and its licence", "the hub's page of the data set says it"),
        ]
    else:
        fields = [
            answer("Data of the run, not yet assigned to 2.1 to 2.6", f"{name}{listed}", "config.yaml, summary.json", "the data"),
            ask("2.1 Publicly available data sets", "which of the data is public: names, links, and a description of the others"),
        ]
    return Section(
        "2. List of data sources",
        [
            *fields,
            ask(
                "2.2.1 Data licensed from rightsholders or their representatives", "whether there is such data, of which modalities"
            ),
            ask(
                "2.2.2 Private data sets from other third parties",
                "whether there is such data; names of those that are known in public",
            ),
            ask(
                "2.3 Data crawled and scraped from the web",
                "crawlers, period, kind of content, and the list of the largest domains",
            ),
            ask("2.4 Data of users", "whether data of the provider's services or of conversations with its models was used"),
            ask("2.5 Synthetic data", "whether models made any of the data, and which models"),
            ask("2.6 Other sources", "data that fits none of the above, such as books that were digitised"),
        ],
        "A run records names, sizes and contents of its data, and not where they were obtained.",
    )


def _describe_files(facts: Facts) -> str:
    parts = [f"{file.split} {file.name}, {file.size:,} bytes" for file in facts.files]
    rows = ", ".join(f"{split} {count:,} rows" for split, count in facts.summary["data"]["rows"].items())
    return f" ({'; '.join(filter(None, [rows, *parts]))})"


def _processing(facts: Facts) -> Section:
    left_out = facts.rows_left_out
    skipped = {split: card.get("skipped") for split, card in facts.run.data().items() if card.get("skipped")}
    counted = [f"{count:,} rows of {split} that could not be used were left out" for split, count in skipped.items()]
    counted += [] if left_out is None else [f"{left_out:,} training rows were left out by data.clean (data_cleaned.csv)"]
    return Section(
        "3. Data processing",
        [
            ask(
                "3.1 Reservations of rights (text and data mining)",
                "how they were found and respected, and which codes were signed",
            ),
            ask("3.2 Removal of illegal content", "what was done to keep it out of the data"),
            answer(
                "3.3 Other processing",
                "; ".join(counted),
                "data.json",
                "filters and other steps before this run; optional",
            ),
        ],
    )
