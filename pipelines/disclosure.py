"""What may a file, MLflow or a terminal get to see? Text that is UTF-8, without secrets, and that steers no
terminal.

Locations are stored with all that is made from them, strangers choose the names of files, and libraries
repeat both in their errors. So a location with a secret in it is refused where a user gives it, and a text
that is stored or printed goes through a function of this module, whoever wrote it.

Two choices aren't obvious. What a URI's query says is a secret unless its parameter is known to be harmless:
nobody can list the names under which storages take signatures. And where a password can't be told from a host
or a path, too much is hidden.
"""

import os
import re
import sys
from typing import TextIO
from urllib.parse import unquote_plus

_URI = re.compile(
    r"""(?:(?<![a-z0-9+.-])[a-z0-9+.-]*://|\b(?:s3|gs|gcs|abfss?|https?|postgresql|mysql):/)[^\s"']+""",
    re.IGNORECASE,
)
"""A URI in a text, with one slash too where that is sure to be a slip."""
_HOST = re.compile(r"(?<![a-z0-9+.-])([a-z0-9+.-]*):/+([^/?#]*)", re.IGNORECASE)
"""The scheme and what stands where a host does: its user, password and port too."""
_WEB = ("http", "https")
_WITH_PORTS = (*_WEB, "hdfs", "viewfs", "ray", "tcp")
"""Schemes in which host:9000/a@b is a port, not the beginning of a password with a slash in it."""
# fmt: off
_HARMLESS = frozenset({
    # pyarrow's
    "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "background_writes",
    "blob_storage_authority", "blob_storage_scheme", "buffer_size",
    "check_directory_existence_before_creation", "client_id", "credential_kind", "default_block_size",
    "dfs_storage_authority", "dfs_storage_scheme",
    "enable_tls", "endpoint_override", "force_virtual_addressing", "project_id", "region", "replication",
    "retry_limit_seconds", "scheme", "smart_defaults", "tenant_id", "tls_ca_dir_path", "tls_ca_file_path",
    "tls_verify_certificates", "user",
    # of databases, and of MLflow's pages
    "charset", "mode", "sslmode", "workflowtype",
})
# fmt: on
"""Parameters of a URI's query that hold no secret."""
_WORD = re.compile(r"[^:@?#&;=]*[,.:)\]}>]*")
_ENDPOINT = re.compile(
    r"(?:https?://)?(?:\[[0-9a-f:.]+\]|[^:/@?#&;=\[\]]*)(?::\d{1,5})?(?:/[^:@?#&;=]*)?[,.:)\]}>]*",
    re.IGNORECASE,
)
"""What a parameter without a secret may say, and `endpoint_override`: a host, with a port or without. In a
text, signs may follow it."""
_REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, which names a file of credentials",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, which names a file of credentials",
    "hf": "HF_TOKEN, or type `hf auth login`",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
    "abfss": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
}
"""By scheme, where a storage's secrets belong."""

_SECRET_NAME = re.compile(
    r"(?:secret|pass(?!es|ed|ing|ive)|pwd|token|signature|credential|(?:api|access|account|private)[_-]?key)"
    r"[\w-]*[\"']?",
    re.IGNORECASE,
)
"""Up to the quote that may close it, as in "password": "hush"."""
_LITERAL = re.compile(r"""(\"""|\'\'\'|["'])((?:\\.|(?!\1)[^\\])+)\1""")
_OPEN_TEXT = re.compile(r"""(?:^[-+ ]?\s*|[=(\[{,:+]\s*)[a-z]{0,2}(\"""|\'\'\')""", re.IGNORECASE)
"""Of a text that goes on in the next line, its beginning; that of a docstring's end has words before it."""
_VALUE = re.compile(r"""^(\\?["']?\s*[:=]).*""")
"""What follows a secret's name in a text that holds its value too, such as "password=hush"."""
_NEW_PLACE = re.compile(r"@@ |diff --git ")
"""With what a line of a diff begins that doesn't follow the one before in the file."""
_BARE_SECRETS = (
    # tokens that say what they are: of Amazon, GitHub, GitLab, Hugging Face, Google, Slack, OpenAI, Stripe,
    # Databricks, SendGrid and registries, and those that are signed JSON
    re.compile(
        r"()\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_\w{30,}|github_pat_\w{30,}|hf_\w{30,}|AIza[\w-]{30,}"
        r"|xox[abprs]-[\w-]{10,}|xapp-[\w-]{10,}|gl[a-z]{2,5}-[\w-]{20,}|sk-[\w-]{20,}|[sr]k_live_\w{16,}"
        r"|(?:npm|dckr_pat|pypi)[_-][\w-]{20,}|dapi[0-9a-f]{32}|SG\.[\w-]{16,}\.[\w-]{16,}"
        r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
    ),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?:.*?(?=-----END)|.*)", re.DOTALL),
)


def without_secrets(text: str) -> str:
    """`text` with the passwords and tokens of all URIs in it replaced by ***."""
    return _URI.sub(lambda uri: _masked(uri[0]), text)


def code_without_secrets(code: str) -> str:
    """As `without_secrets`, for code or a diff of it: the texts behind a name such as `password` are masked
    too, up to the line in which the brackets and the long texts that begin behind it are closed."""
    for secret in _BARE_SECRETS:
        code = secret.sub(r"\1***", code)
    # What a diff takes away and what it adds, each with the lines around it, is code that goes on.
    old, new = _Masking(), _Masking()
    lines = []
    for line in code.split("\n"):
        shown = line if line.startswith("+") else old.line(line)
        lines.append(shown if line.startswith("-") else new.line(shown))
    return without_secrets("\n".join(lines))


class _Masking:
    """What is known of the lines before while code is masked."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._depth = 0
        """Brackets that are open since a secret's name."""
        self._goes_on = False
        """The value of such a name begins in the next line."""
        self._closing = ""
        """The quotes that end a secret of several lines."""

    def line(self, line: str) -> str:
        """The line as it may be stored."""
        if _NEW_PLACE.match(line):
            self._begin()
        if self._closing:
            _, closing, rest = line.partition(self._closing)
            if not closing:
                return f"{line[:1].strip()}***"
            self._closing = ""
            return f"***{closing}{self._after(rest, is_named=True)}"
        if self._depth > 0 or self._goes_on:
            return self._after(line, is_named=True)
        name = _SECRET_NAME.search(line)
        if name is None:
            return line
        text = next((each for each in _LITERAL.finditer(line) if name.start() in range(*each.span())), None)
        if text is None:
            return line[: name.end()] + self._after(line[name.end() :], is_named=False)
        # The name is in a text, with its value or without.
        end = min(name.end(), text.end(2))
        inner = _VALUE.sub(r"\1***", line[end : text.end(2)])
        after = self._after(line[text.end() :], is_named=False, is_key=True)
        return f"{line[:end]}{inner}{text[1]}{after}"

    def _after(self, rest: str, *, is_named: bool, is_key: bool = False) -> str:
        """What follows a secret's name in its line, or a line of its value."""
        masked = _LITERAL.sub(r"\1***\1", rest)
        # Right behind a name there is no text without a sign between them.
        bare = ("" if is_named else ".") + _LITERAL.sub("", rest)
        opening = _OPEN_TEXT.search(bare)
        if opening is not None:
            self._closing = opening[1]
            masked = masked[: masked.rindex(opening[1]) + 3] + "***"
            bare = bare[: opening.start(1)]
        bare = bare.partition("#")[0].rstrip()
        opened, closed = (sum(bare.count(each) for each in signs) for signs in ("([{", ")]}"))
        self._depth = max(0, self._depth + opened - closed)
        self._goes_on = bare.endswith(("=", "\\")) or (is_key and bare.endswith(":"))
        return masked


def storable(text: str) -> str:
    """`text` as it may be stored: without secrets, and with escapes for what isn't UTF-8, which the name of a
    file may hold."""
    return without_secrets(text).encode(errors="backslashreplace").decode()


def plain(text: str) -> str:
    """`text` as it may be printed within a line: without secrets, and with escapes for line ends and all else
    that isn't a sign to be read, such as what steers a terminal or turns the direction of writing."""
    shown = without_secrets(text)
    if shown.isprintable():
        return shown
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


def tell(text: str = "", to: TextIO | None = None) -> None:
    """Prints `text`, each line as `plain`, on stdout or `to`. Where nobody reads any more, as after `| head`,
    it is lost and the work goes on."""
    stream = to or sys.stdout
    try:
        print("\n".join(map(plain, text.split("\n"))), file=stream, flush=True)
    except BrokenPipeError:
        # What Python still has in hand would fail again as the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_text(name: str) -> bool:
    """False for the name of a file that isn't UTF-8; Python keeps its bytes as lone surrogates."""
    return not re.search("[\ud800-\udfff]", name)


def require_storable(text: str, option: str) -> None:
    """ValueError for a location, or another text that a user gives, that isn't UTF-8, and as
    `refuse_secrets`: it will be stored with everything made from it. option: where it was given."""
    if not is_text(text):
        raise ValueError(f"{option} {plain(text)} isn't UTF-8, and what is made from it names it; rename it")
    refuse_secrets(text, option)


def refuse_secrets(text: str, option: str) -> None:
    """ValueError for a location, or another text, with what may be a secret in it."""
    masked = without_secrets(text)
    # A password may hold what ends a URI in a text.
    if masked == text and re.match(r"(?:[\w-]+:)?[a-z0-9+.-]+://", text, re.IGNORECASE):
        masked = _masked(text)
    if masked != text:
        scheme = masked.rpartition(":/")[0].rpartition(":")[2].lower()
        raise ValueError(
            f"{option} {plain(masked)} holds what may be a secret, shown as ***, which would be stored with "
            f"everything made from it: leave it out; {_remedy(scheme)}"
        )


def require_one_password(uri: str, variable: str) -> None:
    """ValueError for a URI in an environment variable whose user and password hold what a URI ends them with,
    such as a slash: libraries take such a password apart and repeat its pieces in their errors."""
    hidden = _without_user(uri)
    if hidden != uri and re.search(r"[\s\"'/?#@\[\]]", uri[hidden.index("***") : uri.rindex("@")]):
        raise ValueError(
            f"{variable} {plain(hidden)} has a user or a password with a sign that ends it in a URI, such as "
            "/ or @; write it as %2F or %40"
        )


def _remedy(scheme: str) -> str:
    if scheme in ("http", "https"):
        return "no file is read over HTTP, so copy it to a disk or a bucket"
    place = _REMEDIES.get(scheme, "the storage's own environment variables or file of credentials")
    return f"set {place} instead, on every node"


def _masked(uri: str) -> str:
    uri = _without_user(uri)
    query = re.search(r"[?#]", uri)
    if query is None:
        return uri
    parts = re.split(r"([?&;#])", uri[query.start() :])[1:]
    return uri[: query.start()] + "".join(
        mark + _masked_parameter(part, is_fragment=mark == "#")
        for mark, part in zip(parts[::2], parts[1::2], strict=True)
    )


def _without_user(uri: str) -> str:
    """A URI, or several that nothing separates, without user and password where there is a secret in them."""
    last = uri.rfind("@")
    for found in _HOST.finditer(uri, 0, last + 1):
        scheme, host = found[1].lower().rpartition("+")[2], found[2].lower()
        user = host.rpartition("@")[0]
        has_password = ":" in (user or host) or "%3a" in (user or host)
        if user:
            # The user of a web server may be a token; of Azure and Google it is a container or `anonymous`.
            is_secret = has_password or scheme in _WEB
        else:
            # A password with a slash in it: the @ comes later.
            is_host = scheme in _WITH_PORTS and re.fullmatch(r"(?:\[.*\]|[^:]*)(?::\d*)?", host)
            is_secret = has_password and not is_host
        if is_secret:
            return f"{uri[: found.start(2)]}***{uri[last:]}"
    return uri


def _masked_parameter(part: str, *, is_fragment: bool) -> str:
    name, mark, value = part.partition("=")
    if not mark:
        # A page, such as #/experiments; as a parameter, whatever it is.
        return part if is_fragment else "***"
    return part if _is_harmless(unquote_plus(name).lower(), value) else f"{name}=***"


def _is_harmless(name: str, value: str) -> bool:
    """Whether a parameter of a URI's query holds no secret: it is known, and its value is a word, a path or
    an endpoint, however often it is encoded."""
    while (decoded := unquote_plus(value)) != value:
        value = decoded
    kind = _ENDPOINT if name == "endpoint_override" else _WORD
    is_bare = any(secret.search(value) for secret in _BARE_SECRETS)
    return name in _HARMLESS and kind.fullmatch(value) is not None and not is_bare
