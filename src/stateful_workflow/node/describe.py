"""What a node shows of itself: its answers, its line of details, and what its activities get. Pure.

Sealed tokens stand in the query `apiToken`, in an activity's header, and in `apiTokenStatus` those
that were set at the node itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ..sealed.message import DEFAULT_NAME, Message
from ..sealed.origins import is_covered
from ..text.times import utc
from .answers import (
    ChildStatus,
    HeldToken,
    JoinAnswer,
    Lacking,
    NarrowedStatus,
    NodeStatus,
    Refusal,
    Rejections,
    TokenAnswer,
    Waiting,
)
from .headers import Use
from .ledger import ALL, Child, Ledger, Life, is_among
from .renewal import SourceStatus
from .status import TokenStatus, TokenTree, TreeNode, state_without

_SHOWN_WAITING: Final = 20
_USE_BYTES: Final = 8192
"""Of sealed tokens: room for two JWTs of 1,200 characters, each sealed for two readers."""

_UNTOLD: Final = (
    "not told, since nobody can say what its closed parent kept from it: set a token at it, or let "
    "its parent's code share() it"
)

_NARROWING: Final = (
    "its narrower token is not there: does a worker of source {0} run (it polls stateful-source:"
    "{0})?"
)
_NO_SOURCE: Final = (
    "its narrower token is not there, and the one above does not say its source: narrowed(source=…)"
)


@dataclass(frozen=True)
class View:
    """A node as it stands.

    Attributes:
        ledger: what it holds and owes.
        now: Unix milliseconds.
        waiting: messages that wait for their issuer to be known.
        reasons: for children that could not be told, or not be found, why.
        narrowing: for children, and names, whose narrower token could not be had, why.
        recovering: the state of a run before is not there yet.
        lost: the state of a run before was lost.
        own_url: the workflow's own API address.
        begun_url: its parent's at its start.
        reports: for each name how often an API was said to have refused the token of a fingerprint.
        sources: what is known of the credentials that a source mints here.
    """

    ledger: Ledger
    now: int
    waiting: Sequence[Message] = ()
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    narrowing: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    recovering: bool = False
    lost: bool = False
    own_url: str | None = None
    begun_url: str | None = None
    reports: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, "Mapping[str, int]"])
    sources: Sequence[SourceStatus] = ()

    @property
    def needs_set(self) -> bool:
        """Whether a state was lost, and nothing was set since."""
        return self.lost and not self.ledger.held

    @property
    def plain_url(self) -> str | None:
        """The API's address where no token is in force."""
        return self.begun_url if self.own_url is None else self.own_url

    @property
    def shown_url(self) -> str | None:
        """The workflow's own address, used or not, or else the one that it follows."""
        return self.api_url(DEFAULT_NAME) if self.own_url is None else self.own_url

    def api_url(self, name: str) -> str | None:
        """The API's address in use with a credential (docs/decisions/28-api-url.md)."""
        message = self.ledger.in_force(name)
        if message is None or message.kind != "token":
            return self.plain_url
        signed = (held.claims.api_url for held in self.ledger.held_here(name))
        urls = (self.own_url, *signed, self.begun_url)
        return next((url for url in urls if is_covered(url, message.claims.origins)), None)

    def status(self, name: str) -> TokenStatus:
        """What is known of a credential."""
        status = self._known(name)
        return status if self.recovering else status.minted_by(self._source(name))

    def _source(self, name: str) -> SourceStatus | None:
        return next((one for one in self.sources if one.name == name), None)

    def _known(self, name: str) -> TokenStatus:
        message = self.ledger.in_force(name)
        if message is not None:
            return self._status_of(message)
        waits = any(message.claims.name == name for message in self.waiting)
        state = state_without(
            waiting=self.recovering or waits,
            needs_set=self.needs_set,
            withheld=is_among(name, self.ledger.withheld()),
        )
        return TokenStatus(name, state, api_url=self.plain_url)

    def token(self, name: str) -> TokenAnswer | None:
        """The answer to the query `apiToken`; None where nothing of the name ever came here."""
        status = self.status(name)
        came = any(of == name for of, _ in self.ledger.floors)
        return TokenAnswer(status, self._sealed(name)) if came or status.state != "none" else None

    def node(
        self, workflow_type: str, *, signals: int = 0, courier: str | None = None
    ) -> NodeStatus:
        """The answer to the query `apiTokenStatus`, with what its run alone knows."""
        ledger, reasons = self.ledger, self.reasons
        return NodeStatus(
            root=ledger.path[0],
            tree=ledger.tree,
            type=workflow_type,
            api_url=self.own_url,
            tokens=tuple(map(self._held, ledger.held.values())),
            children=tuple(map(self._child, {**ledger.closed, **ledger.children}.values())),
            withheld=ledger.withheld(),
            undelivered=tuple(
                Lacking(child.id, *m.place, m.claims.version, reasons.get(child.id, "on its way"))
                for child, messages in ledger.to_tell()
                for m in messages
            ),
            waiting=tuple(
                Waiting(m.claims.name, m.issuer, m.claims.version, m.fingerprint)
                for m in self._shown_waiting()
            ),
            needs_set=self.needs_set,
            recovering=self.recovering,
            replaced=tuple(sorted(ledger.closed.keys() & ledger.children.keys())),
            signals=signals,
            courier=courier,
            id=ledger.path[-1],
            parent=ledger.path[-2] if len(ledger.path) > 1 else None,
            waiting_count=len(self.waiting),
            rejections=Rejections(ledger.rejected, ledger.rejections),
            sources=tuple(self.sources),
            reports=self.reports,
        )

    def tree(self, name: str, workflow_type: str, behind: Iterable[Child]) -> TokenTree:
        """This node and the children that are behind."""
        own, status = self.ledger.path[-1], self.status(name)
        said = (status.state, status.version, status.fingerprint, status.authority)
        below = (
            TreeNode(c.id, c.type, own, "unknown", current=False, problem=self._problem(c, name))
            for c in behind
        )
        return TokenTree(name, (TreeNode(own, workflow_type, None, *said), *below))

    def _problem(self, child: Child, name: str) -> str | None:
        said = self._child(child)
        narrowed = said.narrowing(name)
        return said.reason if narrowed is None else narrowed.pending

    def place(self, joiner: Child, *, is_open: bool, as_child: bool) -> JoinAnswer:
        """The answer to the query `apiTokenJoin`.

        Args:
            joiner: as it would be started here; of one that was, what was withheld then counts.
            is_open: the node's class admits its type.
            as_child: the server names this node as its parent, so that it is the one that was
                started here, and not another that has its id before or after it.
        """
        known = self.ledger.children.get(joiner.id)
        started = None if known is None or known.joined else known
        refused: Refusal | None = None
        if self.recovering or (started is not None and started.life is Life.UNTOLD):
            refused = "not_ready"
        elif not (as_child and started) and (joiner.id in self.ledger.path or not is_open):
            refused = "not_open"
        elif not self.ledger.held:
            refused = "no_token"
        state = None if refused else self.ledger.state_for(started or joiner).dump()
        is_told = known is not None and (started is known or known.type == joiner.type)
        return JoinAnswer(state, self.plain_url, refused, is_told)

    def details(self, theirs: str) -> str:
        """Temporal's own workflow details: what the user's code has there, and a line of ours."""
        withheld = self.ledger.withheld()
        waiting = {message.claims.name for message in self._shown_waiting()}
        minted = [one.name for one in self.sources]
        names = {*self.ledger.names(), *waiting, *withheld, *minted} - {ALL}
        if ALL in withheld or self.needs_set or self.recovering:
            names |= {DEFAULT_NAME}
        statuses = [self.status(name) for name in sorted(names)]
        line = details_line(statuses, self.ledger.path[-1], withheld, self.sources)
        return "\n\n".join(text for text in (theirs, line) if text)

    def use(self, *, local: bool) -> Use:
        """What an activity of this node may open, as it stands now.

        A local one carries every token, since it cannot ask; others only what is small.
        """
        ledger = self.ledger
        tokens: dict[str, Mapping[str, str | None]] = {}
        room = _USE_BYTES
        waiting = (message.claims.name for message in self._shown_waiting())
        minted = (one.name for one in self.sources)
        for name in dict.fromkeys([*ledger.names(), *waiting, *ledger.withheld(), *minted]):
            sealed, status = self._sealed(name), self.status(name)
            room -= 0 if sealed is None else len(sealed)
            tokens[name] = {
                "state": status.state,
                "api_url": status.api_url,
                "sealed": sealed if local or room >= 0 else None,
            }
        return Use(
            root=ledger.path[0],
            tree=ledger.tree,
            api_url=self.plain_url,
            tokens=tokens,
            own={
                name: message.text
                for (name, at), message in ledger.held.items()
                if at == ledger.path[-1] and message.kind == "revocation"
            },
            last={name: message.text for name, message in ledger.last.items()},
        )

    def _sealed(self, name: str) -> str | None:
        message = self.ledger.in_force(name)
        return message.text if message is not None and message.kind == "token" else None

    def _status_of(self, message: Message) -> TokenStatus:
        status, name = TokenStatus.of_message(message), message.claims.name
        if self.ledger.in_force(name) is message:
            status = replace(status, api_url=self.api_url(name))
        status = replace(
            status,
            refused=message.fingerprint in self.reports.get(name, {}),
            overtaken=self.ledger.overtaken(message),
        )
        return status.at(self.now / 1000)

    def _held(self, message: Message) -> HeldToken:
        claims, ledger = message.claims, self.ledger
        is_own = claims.authority == ledger.path[-1]
        last = ledger.last.get(claims.name) if is_own else None
        return HeldToken(
            self._status_of(message),
            claims.authority,
            claims.version,
            message.kind,
            claims.inherit,
            ledger.in_force(claims.name) is message,
            message.text if is_own else None,
            None if last is None else last.text,
        )

    def _child(self, child: Child) -> ChildStatus:
        return ChildStatus(
            child.id,
            child.type,
            child.life,
            _UNTOLD if child.life is Life.UNTOLD else self.reasons.get(child.id),
            self.ledger.withheld_from(child),
            self.ledger.shared_with(child),
            tuple(sorted(child.withheld)),
            child.joined,
            tuple(self._narrowed(child, name) for name in child.narrowed),
        )

    def _narrowed(self, child: Child, name: str) -> NarrowedStatus:
        narrowed, in_force = child.narrowed[name], self.ledger.in_force(name)
        pending: str | None = None
        if child.life is not Life.CLOSED and narrowed.is_due(in_force):
            source = narrowed.source_of(in_force)
            pending = _NO_SOURCE if source is None else _NARROWING.format(source)
            pending = self.narrowing.get((child.id, name), pending)
        return NarrowedStatus(name, narrowed.scopes, narrowed.version, pending)

    def _shown_waiting(self) -> list[Message]:
        """The first few that wait, of as many credential names as can be: anybody can send them."""
        first = {message.claims.name: message for message in reversed(self.waiting)}
        ranked = sorted(self.waiting, key=lambda one: first[one.claims.name] is not one)
        return ranked[:_SHOWN_WAITING]


# --- one line ----------------------------------------------------------------


def details_line(
    statuses: Iterable[TokenStatus],
    own: str,
    withheld: Collection[str] = (),
    sources: Iterable[SourceStatus] = (),
) -> str:
    """What the node of this id holds, as one line of Markdown, without the names `withheld` there.

    For each credential its name and state, and of a message in force the first 4 bytes of the
    fingerprint, the time of the version, its expiry, where it was set if not here, and the source
    that mints it here.
    """
    of_name = {one.name: one for one in sources}
    return " · ".join(_details(one, own, withheld, of_name.get(one.name)) for one in statuses)


def _details(
    status: TokenStatus, own: str, withheld: Collection[str], source: SourceStatus | None
) -> str:
    line = f"{_code(status.name)} **{status.state.replace('_', ' ')}**"
    if status.version is not None and status.fingerprint is not None:
        time = utc(status.version / 1000) or f"version {status.version}"
        line += f" {_code(status.fingerprint[:8])} of {time}"
    if status.expires_at is not None:
        line += f", expires {utc(status.expires_at) or 'never'}"
    if status.authority is not None and status.authority != own:
        line += f", set at {_code(status.authority)}"
    if status.refused:
        line += ", refused by an API"
    if status.state != "withheld" and is_among(status.name, withheld):
        line += ", withheld by a workflow above"
    if source is not None:
        line += f", source {_code(source.source)} {source.state.replace('_', ' ')}"
    return line


def _code(text: str) -> str:
    """A code span (CommonMark 6.1), in which nothing is Markdown, whatever the text holds."""
    text = re.sub(r"\s", " ", text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
