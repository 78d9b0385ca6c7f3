"""The vocabulary that the stages share: an item's text and a profile."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ItemText:
    """What is known of an item in words; any field but one may be empty."""

    title: str
    category: str = ""
    subcategory: str = ""
    description: str = ""

    def joined(self) -> str:
        """The text an encoder sees: `category, subcategory: title. description`."""
        head = ", ".join(part for part in (self.category, self.subcategory) if part)
        body = ". ".join(part for part in (self.title, self.description) if part)
        return f"{head}: {body}" if head and body else head or body

    def is_empty(self) -> bool:
        return not (self.title or self.category or self.subcategory or self.description)


@dataclass(frozen=True)
class Profile:
    """A profile in the published form: three identities and three interests."""

    identity: tuple[str, ...]
    interests: tuple[str, ...]
