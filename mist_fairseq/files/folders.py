"""Old names, to be removed as soon as nothing imports them: see ``exported``."""

from mist_fairseq.files.exported import CONFIG as CONFIG
from mist_fairseq.files.exported import read_config as read_config
from mist_fairseq.files.exported import text as text
from mist_fairseq.files.exported import write_folder as write_folder
