"""Admin of the capture tier."""

from . import dead_letters_admin as dead_letters_admin
from . import flags_admin as flags_admin
