"""HUDD on a chess-piece classifier: do its clusters of errors show what went wrong with the pictures?"""
