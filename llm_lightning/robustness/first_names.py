"""Swap first names in a text for others of the same or of another group.

The list was chosen by hand for this project: given names that are common where each group's language is spoken. No list or statistic
was copied, and the choice claims no frequencies. Names that are English words too (Will, Grace, Mark, Rose) are left out, as lower-cased
texts could not tell them apart. A group is a place of origin and a gender of the name: a name of another group keeps the gender, so that
pronouns still fit. The groups say nothing of a person.
"""

from __future__ import annotations

import random
import re

GROUPS = {
    ("English", "female"): "Mary Jennifer Linda Elizabeth Susan Jessica Sarah Karen Nancy Margaret Emily Laura Rebecca Rachel Amy",
    ("English", "male"): "James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Steven Andrew Kevin",
    ("Spanish", "female"): "María Carmen Guadalupe Lucía Isabel Pilar Rosario Dolores Ximena Catalina",
    ("Spanish", "male"): "José Juan Carlos Luis Miguel Francisco Alejandro Diego Javier Fernando",
    ("German", "female"): "Ursula Renate Helga Sabine Petra Monika Heike Ingrid Katrin Anke",
    ("German", "male"): "Hans Wolfgang Jürgen Klaus Dieter Uwe Stefan Matthias Torsten Heinz",
    ("Slavic", "female"): "Olga Natalia Svetlana Tatiana Irina Ekaterina Agnieszka Katarzyna Ludmila Oksana",
    ("Slavic", "male"): "Ivan Dmitri Sergei Vladimir Mikhail Andrei Piotr Krzysztof Bogdan Oleg",
    ("Arabic", "female"): "Fatima Aisha Khadija Maryam Layla Zainab Nadia Samira Yasmin Huda",
    ("Arabic", "male"): "Mohammed Ahmed Ali Omar Hassan Khalid Mustafa Ibrahim Youssef Abdullah",
    ("Turkish", "female"): "Ayşe Emine Hatice Zeynep Elif Meryem Özlem Sibel Gülşen Derya",
    ("Turkish", "male"): "Mehmet Hüseyin Emre Burak Serkan Osman Kemal Tolga Cem Orhan",
    ("Indian", "female"): "Priya Anjali Lakshmi Sunita Deepa Kavita Meena Pooja Shanti Divya",
    ("Indian", "male"): "Raj Amit Sanjay Rahul Vijay Anil Suresh Arjun Rakesh Ramesh",
    ("Chinese", "female"): "Xiaoling Meiling Yuhan Lihua Xinyi Huiling Qiaolian Jiaying Shufen Yalan",
    ("Chinese", "male"): "Zhiqiang Jianguo Haoran Jianhua Yichen Guoqiang Zhiming Weidong Minghao Junjie",
    ("West African", "female"): "Amara Ngozi Chiamaka Abena Akosua Folake Adaeze Aminata Fatoumata Yetunde",
    ("West African", "male"): "Kwame Chinedu Oluwaseun Kofi Emeka Babatunde Mamadou Ousmane Ikenna Kwabena",
}
"""(origin, gender) -> first names."""
_NAMES = {group: names.split() for group, names in GROUPS.items()}
_GROUP_OF = {name.lower(): group for group, names in _NAMES.items() for name in names}
_WORD = re.compile(r"[^\W\d_]+(?=(?:['’]s)?(?:\W|$))")


def swap_names(text: str, rng: random.Random) -> tuple[str, str]:
    """Swap every first name of the list in a text, the same one always for the same: for names of the `same group` or of an `other group`.

    Names are recognised as they are capitalised in `John` or `JOHN`; in a text without any capital letter as `john` too.
    """
    is_lower = text == text.lower()
    operation = rng.choice(("same group", "other group"))
    present = {_GROUP_OF[word] for word in map(str.lower, _WORD.findall(text)) if word in _GROUP_OF}
    if not present:
        return text, "none"
    used = {word.lower() for word in _WORD.findall(text)}
    swapped: dict[str, str] = {}

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        name = word.lower()
        if name not in _GROUP_OF or not (is_lower or word[0].isupper()):
            return word
        if name not in swapped:
            candidates = [other for other in _list_candidates(_GROUP_OF[name], operation) if other.lower() not in used]
            swapped[name] = rng.choice(candidates)
            used.add(swapped[name].lower())
        other = swapped[name]
        return other.lower() if word.islower() else other.upper() if word.isupper() else other

    changed = _WORD.sub(swap, text)
    return (changed, operation) if changed != text else (text, "none")


def _list_candidates(group: tuple[str, str], operation: str) -> list[str]:
    """Return the names of a group, or those of all other groups with its gender."""
    if operation == "same group":
        return _NAMES[group]
    return [name for other, names in _NAMES.items() if other != group and other[1] == group[1] for name in names]
