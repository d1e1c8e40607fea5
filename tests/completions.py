"""The options of the command in, completions for bash, zsh and fish out: `make completions` writes them.

No completion starts Python: models come from the cache that --models leaves, profiles from the configuration, read by
the shell (streamcli(1), section "FILES").
"""

import shlex
from pathlib import Path

import click

from streamcli.cli.args import EXCLUSIVE, OPTIONS
from streamcli.cli.verdict import KNOWN_TO_FAIL_ON

FOLDER = Path(__file__).parent.parent / "completions"
HEADER = "# Made from the options by tests/completions.py: run `make completions`.\n"

# What a value is, by the option's metavar: names of files, of commands, one of some words, or nothing to offer.
FILES = {"FILE", "PATH", "PATH|URL", "FILE|JSON", "PROGRAM", "[MODEL.gguf]"}
COMMANDS = {"COMMAND"}
FREE = {"TEXT", "KEY=VALUE", "N", "SECONDS", "X", "URL", "DATE", "'NAME: VALUE'"}
WORDS = {
    "effort": ["low", "medium", "high", "xhigh", "max"],
    "thinking": ["adaptive", "off"],
    "tool_choice": ["auto", "any", "none"],
    "fail_on": sorted([*KNOWN_TO_FAIL_ON, "none"]),
    "beta": [],
}
MODELS, PROFILES = {"model", "fallback_model"}, {"profile"}
# How a shell reads both lists; fish has another syntax for what stands for an unset variable.
_LISTS = {
    "models": ("XDG_CACHE_HOME", ".cache", "models", "p"),
    "profiles": (
        "XDG_CONFIG_HOME",
        ".config",
        "config.toml",
        r"""s/^[[:space:]]*\[profile\.["']\{0,1\}\([^]"']*\)["']\{0,1\}\].*/\1/p""",
    ),
}


def names(option):
    """All its names, the short one first."""
    return sorted([*option.opts, *option.secondary_opts], key=len)


def kind(option):
    """What completes its value: "flag", "files", "commands", "models", "profiles", "free", or a list of words."""
    if option.is_flag or option.name == "cache":  # whose next word is the prompt
        return "flag"
    if isinstance(option.type, click.Choice):
        return list(option.type.choices)
    for found, known in (("models", MODELS), ("profiles", PROFILES)):
        if option.name in known:
            return found
    if option.name in WORDS:
        return WORDS[option.name]
    for found, known in (("files", FILES), ("commands", COMMANDS), ("free", FREE)):
        if option.metavar in known:
            return found
    raise AssertionError(f"tests/completions.py does not know what {option.metavar} of --{option.name} is")


def described(option):
    """Its names and what is said of them, one long name a row, because zsh gives each further one a column."""
    text = (option.help or "").rstrip(".")
    letters = [name for name in option.opts if not name.startswith("--")]
    name, *others = [name for name in option.opts if name not in letters]
    rows = [([*letters, name], text), *(([other], f"The same as {name}") for other in others)]
    if option.secondary_opts:
        rows.append((option.secondary_opts, f"Do not {text[0].lower()}{text[1:].partition('.')[0]}"))
    return rows


# bash


def bash():
    groups = {}
    for option in OPTIONS:
        if kind(option) != "flag":
            found = kind(option)
            groups.setdefault(" ".join(found) if isinstance(found, list) else f"@{found}", []).extend(names(option))
    actions = {
        "@files": "compopt -o filenames; found=(-f)",
        "@commands": "found=(-c)",
        "@models": 'found=(-W "$(_streamcli_models)")',
        "@profiles": 'found=(-W "$(_streamcli_profiles)")',
        "@free": "return",
        "": "return",
    }
    cases = "".join(
        f"        {'|'.join(found)})\n            {actions.get(words, f'found=(-W {shlex.quote(words)})')} ;;\n"
        for words, found in groups.items()
    )
    options = " ".join(name for option in OPTIONS for name in names(option))
    lists = "".join(_shell_list(name) for name in _LISTS)
    return f"""{HEADER}{lists}
_streamcli() {{
    local -a words=() found
    local word is_joined='' option current rest
    COMPREPLY=()
    # bash parts words at ":" and "=", which stand in the names of models and behind those of options.
    for word in "${{COMP_WORDS[@]:0:COMP_CWORD + 1}}"; do
        if [[ $word == [:=] || $is_joined ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
        [[ $word == [:=] ]] && is_joined=yes || is_joined=
    done
    [[ " ${{words[*]:0:${{#words[@]}} - 1}} " == *" -- "* ]] && return
    current=${{words[-1]}} option=${{words[-2]}}
    [[ $current == --*=* ]] && option=${{current%%=*}} current=${{current#*=}}
    case $option in
{cases}        *)
            [[ $current == -* ]] || return
            found=(-W '{options} -h --help --version') ;;
    esac
    mapfile -t COMPREPLY < <(compgen "${{found[@]}}" -- "$current")
    rest=${{current##*[:=]}}
    COMPREPLY=("${{COMPREPLY[@]#"${{current%"$rest"}}"}}")
}}

complete -F _streamcli streamcli
"""


def _shell_list(name):
    variable, usual, file, script = _LISTS[name]
    path = f'"${{{variable}:-$HOME/{usual}}}/streamcli/{file}"'
    return f"\n_streamcli_{name}() {{\n    sed -n {shlex.quote(script)} {path} 2> /dev/null\n}}\n"


# zsh


def zsh():
    lines = [_zsh_option(option, *row) for option in OPTIONS for row in described(option)]
    lines += ["'(-)'{-h,--help}'[Show all options]'", "'(-)--version[Print the version]'"]
    arguments = " \\\n        ".join(lines)
    completers = "".join(
        f"""
_streamcli_complete_{name}() {{
    local -a found=("${{(@f)$(_streamcli_{name})}}")
    compadd -a found
}}
"""
        for name in _LISTS
    )
    return f"""#compdef streamcli
{HEADER}{"".join(_shell_list(name) for name in _LISTS)}{completers}
_streamcli() {{
    _arguments -s -S \\
        {arguments}
}}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _streamcli "$@"
else
    compdef _streamcli streamcli
fi
"""


def _zsh_option(option, shown, text):
    others = [names(other)[-1] for pair in EXCLUSIVE if option.name in pair for other in _named(set(pair), option)]
    excluded = " ".join(dict.fromkeys([*sorted(others), *(() if option.multiple else names(option))]))
    text = text.replace("[", r"\[").replace("]", r"\]").replace(":", r"\:").replace("'", "'\\''")
    found = kind(option)
    actions = {
        "files": "_files",
        "commands": "_cmdstring",
        "models": "_streamcli_complete_models",
        "profiles": "_streamcli_complete_profiles",
        "free": " ",
    }
    action = f"({' '.join(found) or ' '})" if isinstance(found, list) else actions.get(found, "")
    value = "" if found == "flag" else f":{(option.name or '').replace('_', ' ')}:{action}"
    prefix = f"'({excluded})'" if excluded else ""
    star = "'*'" if option.multiple else ""
    # Where a long name takes its value behind "=" as well.
    shown = [name + ("=" if name.startswith("--") and found != "flag" else "") for name in shown]
    listed = f"{{{','.join(shown)}}}" if len(shown) > 1 else shown[0]
    return f"{prefix}{star}{listed}'[{text}]{value}'"


def _named(pair, option):
    return [other for other in OPTIONS if other.name in pair and other is not option]


# fish


def fish():
    lists = "".join(
        f"""
function __streamcli_{name}
    set -l folder ${variable}
    test -n "$folder"; or set folder $HOME/{usual}
    sed -n {shlex.quote(script).replace(chr(92), chr(92) * 2)} $folder/streamcli/{file} 2> /dev/null
end
"""
        for name, (variable, usual, file, script) in _LISTS.items()
    )
    lines = ["complete -c streamcli -f"]
    lines += [_fish_option(option, *row) for option in OPTIONS for row in described(option)]
    lines += [
        "complete -c streamcli -s h -l help -d 'Show all options'",
        "complete -c streamcli -l version -d 'Print the version'",
    ]
    return HEADER + lists + "\n" + "\n".join(lines) + "\n"


def _fish_option(option, shown, text):
    found = kind(option)
    actions = {
        "flag": "",
        "files": " -r -F",
        "commands": " -x -a '(__fish_complete_command)'",
        "models": " -x -a '(__streamcli_models)'",
        "profiles": " -x -a '(__streamcli_profiles)'",
        "free": " -x",
    }
    action = f" -x -a '{' '.join(found)}'" if isinstance(found, list) else actions[found]
    letters = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in shown)
    text = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"complete -c streamcli{letters}{action} -d '{text}'"


MADE = {"streamcli": bash, "_streamcli": zsh, "streamcli.fish": fish}

if __name__ == "__main__":
    for name, make in MADE.items():
        (FOLDER / name).write_text(make())
