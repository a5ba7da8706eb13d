"""Every command on a small graph: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import re

import pytest

from tests_cli import Desk
