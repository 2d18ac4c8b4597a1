"""The errors that gradscope raises; each message is one line that says what to do."""


class GradscopeError(Exception):
    """Base of every error that a user of gradscope can meet."""


class SettingsError(GradscopeError):
    """An option has a value that cannot work."""


class RunError(GradscopeError):
    """A path holds no run that can be read, or one of a newer format."""


class SurgeryRefused(GradscopeError):
    """A remedy cannot be applied to this model; the message gives the reason."""


class CriticalFinding(GradscopeError):
    """Training was stopped for a critical finding, as on_critical="stop" asks; the message names it."""
