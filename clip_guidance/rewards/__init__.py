"""Rewards of other projects: PickScore, HPSv2.1, the aesthetic predictor, ImageReward."""
