"""The grammar of the sentences in human languages, against a table of genders that is written apart from them."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest

from saeworks.world.documents import Document
from saeworks.world.domains import languages
from saeworks.world.domains.languages import LANGUAGES
from saeworks.world.drawing import Draw
from saeworks.world.phrasing import SPLITS

# Written apart from the data: articles by gender and number, and the nouns that take them.
ARTICLES = {
    "French": {"m": "le un du mon son", "f": "la une ma", "p": "les des deux", "e": "l'"},
    "German": {"m": "der den dem am einen ein mein", "f": "die der eine meine", "n": "das dem ein kein",
               "p": "die zwei viele"},
    "Spanish": {"m": "el un mi del", "f": "la una mi", "mp": "los dos muchos", "fp": "las muchas"},
    "Italian": {
        "m": "il un lo mio", "f": "la una alla dalla mia", "mp": "i gli due", "fp": "le molte", "e": "l' un'",
    },
}  # fmt: skip
NOUNS = {
    "French": {
        "m": "garçon soir matin lundi dimanche vent soleil ciel nord brouillard petit-déjeuner dîner gâteau restaurant "
        "pain train billet passeport bus voyage bébé chien mariage manteau chapeau sac magasin marché prix client "
        "panier bureau chef contrat projet téléphone professeur cours crayon dictionnaire père frère fils riz poisson "
        "café thé lait vin jus emploi livre anniversaire ami",
        "f": "femme fille tempête table salade voiture gare ville valise carte famille grand-mère histoire maison "
        "chemise caisse réunion machine question réponse mère sœur soupe viande musique géographie voisine",
        "p": "jours œufs légumes enfants parents collègues élèves devoirs vacances mathématiques",
        "e": "homme hiver air avion aéroport hôtel oncle usine école examen eau histoire",
    },
    "German": {
        "m": "Mann Junge Sonntag Montag Morgen Abend Wind Sturm Norden Himmel Winter Tisch Kuchen Salat Zug Bahnhof "
        "Flughafen Pass Koffer Bus Hund Onkel Mantel Hut Markt Preis Kunde Korb Chef Vertrag Lehrer Unterricht "
        "Bleistift Vater Bruder Sohn Freund",
        "f": "Frau Sonne Luft Fahrkarte Stadt Reise Karte Familie Großmutter Geschichte Hochzeit Tasche Kasse Sitzung "
        "Stelle Maschine Fabrik Frage Schule Prüfung Antwort Mutter Schwester Tochter Nachbarin",
        "n": "Mädchen Frühstück Abendessen Restaurant Brot Auto Flugzeug Hotel Baby Hemd Geschäft Geld Büro Projekt "
        "Telefon Buch Wörterbuch",
        "p": "Wolken Kinder Eltern Kollegen Schüler Hausaufgaben Ferien",
    },
    "Spanish": {
        "m": "hombre chico viento sol norte cielo aire invierno desayuno restaurante pan tren coche billete avión "
        "aeropuerto pasaporte hotel autobús viaje mapa bebé perro tío abrigo sombrero bolso mercado precio cliente "
        "jefe empleo contrato proyecto teléfono libro profesor examen lápiz diccionario padre hermano hijo amigo",
        "f": "mujer chica tarde mañana tormenta cena mesa tarta ensalada estación ciudad maleta familia abuela "
        "historia boda camisa tienda caja cesta tarjeta oficina reunión máquina fábrica pregunta clase escuela "
        "respuesta madre hermana hija vecina",
        "mp": "días domingos lunes hijos padres niños compañeros alumnos deberes",
        "fp": "seis ocho nueve diez nubes vacaciones",
    },
    "Italian": {
        "m": "ragazzo lunedì sole vento cielo ristorante pane treno biglietto passaporto viaggio neonato compleanno "
        "cane zio matrimonio cappotto cappello negozio mercato prezzo cliente cesto capo impiego contratto progetto "
        "telefono libro professore dizionario amico padre fratello figlio",
        "f": "donna ragazza domenica mattina sera tempesta colazione cena torta macchina stazione città valigia mappa "
        "famiglia nonna storia camicia borsa cassa carta riunione fabbrica domanda lezione scuola matita risposta "
        "musica matematica geografia vicina madre sorella figlia",
        "mp": "genitori bambini colleghi alunni compiti figli",
        "fp": "nuvole vacanze",
        "e": "uomo inverno aria insalata aereo aeroporto albergo autobus ufficio esame",
    },
}  # fmt: skip
# Words that stand where a noun is looked for and are none, such as a verb after a pronoun.
NO_NOUNS = {"French": {"sais"}, "German": {"ist"}, "Spanish": set[str](), "Italian": {"so", "mio", "mia"}}


@cache
def sample(split: str, count: int = 1200) -> tuple[Document, ...]:
    return tuple(
        languages.write(Draw(0, "languages", split, i), split, f"languages/{split}/0/{i}") for i in range(count)
    )


def pieces(made: Document, concept: str) -> list[str]:
    return [made.text[s.start : s.end] for s in made.spans if s.concept == concept]


def texts(language: str) -> list[str]:
    """All sentences that the samples have in a language."""
    concept = f"languages/language/{language.lower()}"
    return [piece for split in SPLITS for made in sample(split) for piece in pieces(made, concept)]


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_articles_agree_with_their_nouns(language: str) -> None:
    articles = {gender: set(words.split()) for gender, words in ARTICLES[language].items()}
    nouns = {gender: set(words.split()) for gender, words in NOUNS[language].items()}
    met: set[str] = set()
    for text in texts(language):
        words = re.findall(r"\w+'|[\w-]+", text)
        for word, noun in itertools.pairwise(words):
            genders = [gender for gender, ones in articles.items() if word.lower() in ones]
            if genders and noun not in NO_NOUNS[language]:
                assert any(noun in nouns[gender] for gender in genders), f"{word} {noun}: {text}"
                met.add(noun)
    assert met == set().union(*nouns.values())


def test_texts_are_written_as_texts_are() -> None:
    assert not [text for text in texts("English") if re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE)]
    for made in (one for split in SPLITS for one in sample(split)):
        assert re.fullmatch(r'["¿]?[A-ZÉÈ].*[.?]"?', made.text, re.DOTALL), made.text
        assert not re.search(r"[{}|]|  |\.\.| \.| ,", made.text), made.text
