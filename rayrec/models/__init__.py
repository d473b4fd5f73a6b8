"""The fusion model: items from what they are and who wants them, shoppers from what they did."""
