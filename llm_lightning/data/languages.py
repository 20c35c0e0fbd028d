"""Set the languages of multilingual translation models (mBART, mBART-50, M2M100, NLLB), whose tokenizers mark each text's language."""

from __future__ import annotations

import re
from typing import Any

from llm_lightning.config.schema import LanguagesConfig
from llm_lightning.errors import UserError, join_names, nearest

_PAIRS = """
af=afr am=amh ar=arb az=azj be=bel bg=bul bn=ben bs=bos ca=cat cs=ces cy=cym da=dan de=deu el=ell en=eng eo=epo es=spa
et=est eu=eus fa=pes fi=fin fr=fra ga=gle gd=gla gl=glg gu=guj ha=hau he=heb hi=hin hr=hrv hu=hun hy=hye id=ind ig=ibo
is=isl it=ita ja=jpn jv=jav ka=kat kk=kaz km=khm kn=kan ko=kor ky=kir lb=ltz lo=lao lt=lit lv=lvs mg=plt mk=mkd ml=mal
mn=khk mr=mar ms=zsm mt=mlt my=mya nb=nob ne=npi nl=nld nn=nno no=nob oc=oci or=ory pa=pan pl=pol ps=pbt pt=por ro=ron
ru=rus sd=snd si=sin sk=slk sl=slv so=som sq=als sr=srp su=sun sv=swe sw=swh ta=tam te=tel tg=tgk th=tha tk=tuk tl=tgl
tr=tur tt=tat ug=uig uk=ukr ur=urd uz=uzn vi=vie wo=wol xh=xho yi=ydd yo=yor zh=zho zu=zul
"""
THREE_LETTERS = {two: three for two, _, three in (pair.partition("=") for pair in _PAIRS.split())}
"""ISO 639-1 to the codes of FLORES-200, which NLLB uses. A language with several varieties has the most common one."""
CODE = re.compile(r"_*([a-z]{2,3}(_[A-Za-z]{2,4})?)_*")


def has_languages(tokenizer: Any) -> bool:
    """Return whether a tokenizer marks texts with their language."""
    return hasattr(tokenizer, "set_src_lang_special_tokens")


def language_codes(tokenizer: Any) -> list[str]:
    """Return the language codes of a multilingual tokenizer."""
    codes = list(getattr(tokenizer, "lang_code_to_id", {}))
    return codes or [token for token in tokenizer.all_special_tokens if CODE.fullmatch(token)]


def language_id(tokenizer: Any, code: str) -> int:
    """Return the id of the token of a language."""
    ids: dict[str, int] = getattr(tokenizer, "lang_code_to_id", {})
    return ids[code] if code in ids else int(tokenizer.convert_tokens_to_ids(code))


def set_languages(tokenizer: Any, languages: LanguagesConfig) -> None:
    """Make a tokenizer mark sources and targets with these languages.

    Without configured languages the tokenizer keeps the ones that it was saved with, if it names its target. Raises UserError if a
    multilingual tokenizer has no languages, if they are configured for a monolingual one, and for unknown or ambiguous codes.
    """
    configured = {side: code for side, code in vars(languages).items() if code is not None}
    if not has_languages(tokenizer):
        if configured:
            side, code = next(iter(configured.items()))
            raise UserError(
                f"data.languages.{side}={code}: {type(tokenizer).__name__} does not mark languages; leave it out. Text before each "
                f"source is set with data.prefix."
            )
        return
    codes = language_codes(tokenizer)
    stored = {"source": tokenizer.src_lang, "target": tokenizer.tgt_lang} if tokenizer.tgt_lang is not None else {}
    chosen = {side: _find_code(side, code, codes) for side, code in (stored | configured).items()}
    missing = [side for side in ("source", "target") if side not in chosen]
    if missing:
        example = _example(codes)
        raise UserError(
            f"data.languages.{missing[0]} is not set: {type(tokenizer).__name__} marks each text with its language; give both, "
            f"'data.languages={{source: {example[0]}, target: {example[1]}}}' for example. There are {join_names(codes, 8)}."
        )
    tokenizer.tgt_lang, tokenizer.src_lang = chosen["target"], chosen["source"]


def _example(codes: list[str]) -> tuple[str, str]:
    two = [next((code for code in codes if code.startswith(begin)), codes[i]) for i, begin in enumerate(("en", "de"))]
    return two[0], two[1]


def _find_code(side: str, code: str, codes: list[str]) -> str:
    """Return the tokenizer's code for `code`: the same, or the only one of the language that a short code names."""
    if code in codes:
        return code
    language = re.split(r"[_-]", code.lower())[0]
    names = {language, THREE_LETTERS.get(language, language)}
    scripts = [c for c in codes if c.lower().replace("-", "_") == code.lower().replace("-", "_")]
    matches = scripts or [c for c in codes if c.split("_")[0] in names and language == code.lower()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"data.languages.{side}={code}: this may be {join_names(matches)}; give one of them.")
    raise UserError(
        f"data.languages.{side}={code}: the tokenizer has no such language; it has {join_names(codes, 8)}.{nearest(code, codes)}"
    )
