"""Who may call LiteLLM, and for how much: the key of the tests, and as many dollars as a file says."""

import os

from fastapi import HTTPException
from litellm.proxy._types import UserAPIKeyAuth, hash_token


async def check(request, api_key):
    if api_key != os.environ["BUDGET_KEY"]:
        raise HTTPException(401, "no such key")
    with open(os.environ["BUDGET_FILE"], encoding="utf-8") as file:
        dollars = float(file.read())
    budget = {"fake": {"budget_limit": dollars, "time_period": "1d"}}
    return UserAPIKeyAuth(api_key=api_key, token=hash_token(api_key), model_max_budget=budget)
